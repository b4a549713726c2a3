"""Chooses the workers of a call, and remembers what later choices go by: homes and known prefixes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

from prefillshare.router.placement.chunks import CHUNK_TOKENS, Chain, chain_of_tokens
from prefillshare.router.placement.known import KnownPrefixes
from prefillshare.router.placement.policy import Policy
from prefillshare.router.placement.rule import Candidate, Prompt
from prefillshare.router.placement.table import policies
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router.sessions import Affinity, SessionKey
from prefillshare.router_config import PlacementConfig

HasRoom = Callable[[Worker, int], bool]  # whether a call that puts so many tokens on the worker is within its limits


class Placed(NamedTuple):
    """A worker, why it was chosen, and what the call puts on it, in tokens."""

    worker: Worker
    rule: str
    tokens: int


class Placement:
    """Chooses among the workers that are ready. `without` holds those a call has already tried.

    `has_room` leaves out those whose limits the call would exceed, unless it would exceed all: a session whose home is
    full moves rather than waits. What comes here has been let in already (`flow`), so some worker has room.

    The pool follows from the model. A session has a home in every pool that it calls, so the prefill worker and the
    decode workers that it goes to are independent of each other, and a module of another base has other homes.

    The home is the worker that was chosen last, for whatever reason: it has the longest context then. So a session that
    is called while its worker is down moves for good, and one that is not stays: its context is lost either way, and
    staying moves nobody else.

    A choice is remembered at once, not when the call has succeeded, so that calls at the same time over one context
    meet. What a worker knew is forgotten when it goes down, since it comes back empty.
    """

    def __init__(
        self, routes: Mapping[str, ModelRoute], settings: PlacementConfig | None = None, *, block_size: int = 128
    ) -> None:
        """
        Args:
            routes: those of the decode modules, by the names that clients call them by.
            block_size: of the workers' KV caches, in tokens.

        Raises:
            UserError: a rule in `settings` that does not exist or does not take its parameters.
        """
        self.routes = routes
        settings = settings or PlacementConfig()
        self._block_size = block_size
        self._prefill, self._decode = policies(settings)
        self._max_sessions = settings.sessions
        self._homes: WeakKeyDictionary[Pool, Affinity] = WeakKeyDictionary()  # a pool that goes takes its homes along
        self._prefill_memory = _Memory(settings.known_tokens)
        self._decode_memory = _Memory(settings.known_tokens)

    def prefill(
        self,
        model: str,
        session: SessionKey | None,
        chain: Chain,
        without: Collection[Worker] = (),
        has_room: HasRoom | None = None,
    ) -> Placed | None:
        """The worker for leg 1; `chain` is that of its prompt. Its load is what it has to compute, as far as known."""
        pool = self.routes[model].prefill
        candidates = self._candidates(pool, self._prefill_memory, session, chain, without, partial(_missing, chain))
        return self._place(self._prefill, candidates, pool, self._prefill_memory, session, chain, has_room)

    # These two go by the prefill pool: they are asked for calls that wait, whose models may be gone.

    def knows_most(self, pool: Pool, session: SessionKey | None, chain: Chain) -> bool:
        """Whether a ready worker has probably cached at least half of the prompt: the session's home, if it has one."""
        home = self._homes_in(pool).get(session) if session else None
        ready = pool.ready()
        asked = [worker for worker in ready if worker.name == home] or ready
        known = (self._prefill_memory.of(pool, worker).longest(chain.hashes).chunks for worker in asked)
        return any(2 * chain.length(chunks) >= chain.tokens for chunks in known)

    def to_compute(self, pool: Pool, chain: Chain) -> dict[Worker, int]:
        """What a prefill of that prompt would put on each worker that is ready, in tokens."""
        candidates = self._candidates(pool, self._prefill_memory, None, chain, (), partial(_missing, chain))
        return {candidate.worker: candidate.added for candidate in candidates}

    def holds(self, worker: Worker, kv_tokens: int) -> None:
        """The worker's cache has room for so many tokens: what was not used for longer than these is not there."""
        memory = self._prefill_memory if worker.role == "prefill" else self._decode_memory
        memory.limit(worker, kv_tokens)

    def chain_of(self, token_ids: Sequence[int], salt: str | None = None) -> Chain:
        """A prompt that a worker has tokenised, in blocks of the KV caches.

        `salt` is that of the caller's cached prefixes: where other tenants' blocks are must not decide, or show.
        """
        return chain_of_tokens(token_ids, self._block_size, salt)

    def decode(
        self,
        model: str,
        session: SessionKey | None,
        chain: Chain,
        without: Collection[Worker] = (),
        has_room: HasRoom | None = None,
    ) -> Placed | None:
        """The worker for leg 2; `chain` is that of its prompt's tokens (`chain_of`).

        Its load is the whole prompt, which it holds and reads for every token it generates.
        """
        pool = self.routes[model].decode
        candidates = self._candidates(pool, self._decode_memory, session, chain, without, lambda known: chain.tokens)
        return self._place(self._decode, candidates, pool, self._decode_memory, session, chain, has_room)

    def stay(self, pool: Pool, session: SessionKey | None, worker: Worker) -> None:
        """`worker` of `pool` has served the session's call, whatever was chosen after it."""
        if session:
            self._homes_in(pool).set(session, worker.name)

    def lost(self, pool: Pool, session: SessionKey | None, worker: Worker) -> None:
        """`worker` of `pool` could not get, or keep, the session's KV: no reason is left to send it there."""
        if session:
            self._homes_in(pool).forget(session)
        self._decode_memory.forget(worker)

    def forget(self, worker: Worker) -> None:
        """The worker has left: nothing is known of one of its name that joins later.

        Homes stay. A session that is called meanwhile moves, one that is not comes back to that name, as after a
        restart, and the other workers keep theirs.
        """
        self._prefill_memory.left(worker)
        self._decode_memory.left(worker)

    def _homes_in(self, pool: Pool) -> Affinity:
        if pool not in self._homes:
            self._homes[pool] = Affinity(self._max_sessions)
        return self._homes[pool]

    def _candidates(
        self,
        pool: Pool,
        memory: "_Memory",
        session: SessionKey | None,
        chain: Chain,
        without: Collection[Worker],
        added: Callable[[int], int],
    ) -> list[Candidate]:
        """`added` is what the call puts on a worker that knows so many tokens of its prompt."""
        home = self._homes_in(pool).get(session) if session else None
        candidates = []
        for worker in pool.least_recent():
            if worker in without:
                continue
            known = memory.of(pool, worker)
            match = known.longest(chain.hashes)
            length = chain.length(match.chunks)
            candidates.append(
                Candidate(
                    worker,
                    home=worker.name == home,
                    known=length,
                    own=match.own,
                    held=known.tokens,
                    load=pool.load(worker),
                    added=added(length),
                )
            )
        return candidates

    def _place(
        self,
        policy: Policy,
        candidates: Sequence[Candidate],
        pool: Pool,
        memory: "_Memory",
        session: SessionKey | None,
        chain: Chain,
        has_room: HasRoom | None,
    ) -> Placed | None:
        """Chooses, and remembers it. If none has room, all count."""
        if has_room:
            candidates = [one for one in candidates if has_room(one.worker, one.added)] or candidates
        chosen = policy.choose(candidates, Prompt(chain.tokens, session))
        if chosen is None:
            return None
        worker = chosen.candidate.worker
        memory.of(pool, worker).add(chain.hashes, chain.chunk_tokens)
        if session:
            self._homes_in(pool).set(session, worker.name)
        return Placed(worker, chosen.rule, chosen.candidate.added)


def _missing(chain: Chain, known: int) -> int:
    """What a prefill has to compute where so much of the prompt is known, in tokens."""
    return max(chain.tokens - known, CHUNK_TOKENS)


class _Memory:
    """What each worker of a role knows. Names of workers are distinct over all pools."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._limits: dict[str, int] = {}  # of workers that have room for fewer, in tokens
        self._known: dict[str, tuple[int, KnownPrefixes]] = {}  # with the losses of the worker when it began

    def of(self, pool: Pool, worker: Worker) -> KnownPrefixes:
        losses = pool.losses(worker)
        kept = self._known.get(worker.name)
        if kept is None or kept[0] != losses:
            most = self._limits.get(worker.name, self._max_tokens)
            kept = self._known[worker.name] = (losses, KnownPrefixes(most))
        return kept[1]

    def limit(self, worker: Worker, tokens: int) -> None:
        most = self._limits[worker.name] = min(tokens, self._max_tokens)
        if kept := self._known.get(worker.name):
            kept[1].limit(most)

    def forget(self, worker: Worker) -> None:
        self._known.pop(worker.name, None)

    def left(self, worker: Worker) -> None:
        self.forget(worker)
        self._limits.pop(worker.name, None)  # told anew when another one comes under its name
