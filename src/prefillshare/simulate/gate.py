"""When calls begin, as the router's flow control has it (docs/flow.md).

The router lets a call in when a prefill worker has little enough to compute and its decode worker has room for its KV,
those first whose prompts are cached. All callers are one key, models of one base take no turns: calls are looked at in
the order of their arrival, and prompts are counted as long as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from prefillshare.router.flow.fair import LOOKED_AT
from prefillshare.router.flow.held import HeldKV
from prefillshare.router.placement.chunks import CHUNK_TOKENS, Chain
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router_config import FlowConfig
from prefillshare.simulate.calls import Prompts, Run
from prefillshare.simulate.layout import Role


class Room:
    """What a call in flight takes of workers, from before leg 1 on: the router's `Ticket`, in simulated time."""

    __slots__ = ("_chain", "_decode", "_gate", "_output", "_parts", "_prefill")

    def __init__(self, gate: "Gate", run: Run, chain: Chain, decoder: Worker) -> None:
        """Reserves room on `decoder`."""
        self._gate, self._chain, self._output = gate, chain, run.call.output
        self._prefill, self._decode = gate.prefill_pool(run), gate.decode_pool(run)
        self._parts: dict[str, Callable[[], None]] = {
            "decode": self._decode.reserve(decoder, run.call.prompt + self._output)
        }
        self.decode(decoder)

    def fits_prefill(self, worker: Worker, tokens: int) -> bool:
        return self._gate.has_room(self._prefill, worker, tokens, self._chain)

    def prefill(self, worker: Worker) -> None:
        """Leg 1 goes there, and the prompt's KV stays there until it has been pulled."""
        self._parts["parked"] = self._gate.held.hold(worker, self._chain)

    def prefilled(self, now: float) -> None:
        self._gate.freed(now, self._prefill)

    def fits_decode(self, worker: Worker, tokens: int) -> bool:
        return self._gate.has_room(self._decode, worker, tokens, self._chain, self._output)

    def choose_decode(self) -> None:
        """Placement may choose another worker than the one that room was reserved on."""
        self._release("decode", "kv")

    def decode(self, worker: Worker) -> None:
        self._parts["kv"] = self._gate.held.hold(worker, self._chain, self._output)

    def pulled(self, now: float) -> None:
        self._release("parked")
        self._gate.freed(now, self._prefill)

    def decoded(self, now: float) -> None:
        self._release("kv")
        self._gate.freed(now, self._prefill)

    def _release(self, *parts: str) -> None:
        for part in parts:
            self._parts.pop(part)()


Begin = Callable[[float, Run, Room], None]  # at a time


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    since: float
    run: Run
    begin: Begin


class Gate:
    """In front of a deployment, whose workers have limits from here on."""

    def __init__(
        self,
        placement: Placement,
        prompts: Prompts,
        settings: FlowConfig,
        *,
        kv_tokens: Mapping[Role, int],
        max_num_seqs: int,
    ) -> None:
        """`kv_tokens` is what a worker of each role has room for, `max_num_seqs` what it runs at a time."""
        self._placement, self._prompts, self._settings = placement, prompts, settings
        self._queues: dict[Pool, dict[_Waiting, None]] = {}  # in the order of their arrival
        limits = {role: int(tokens * settings.kv_share) for role, tokens in kv_tokens.items()}
        self.held = HeldKV(lambda worker: limits[worker.role])
        for route in placement.routes.values():
            for worker in route.prefill.workers:
                route.prefill.set_limit(worker, min(settings.prefill_tokens, limits["prefill"]))
            for worker in route.decode.workers:
                route.decode.set_limit(worker, None, max_num_seqs)

    def call(self, now: float, run: Run, begin: Begin) -> None:
        """`begin` is called when there is room, which may be at once."""
        pool = self.prefill_pool(run)
        self._queues.setdefault(pool, {})[_Waiting(now, run, begin)] = None
        self.freed(now, pool)

    def freed(self, now: float, pool: Pool) -> None:
        """There may be room for calls that this prefill pool serves."""
        queue, full = self._queues.get(pool, {}), set[Pool]()
        while waiting := self._next(now, queue, full):
            run = waiting.run
            chain = self._prompts.chain(run, CHUNK_TOKENS)
            decoder = self._decoder(run, chain)
            if decoder is None:
                full.add(self.decode_pool(run))
                continue
            compute = self._placement.to_compute(pool, chain)
            if not any(self.has_room(pool, worker, tokens, chain) for worker, tokens in compute.items()):
                return
            del queue[waiting]
            waiting.begin(now, run, Room(self, run, chain, decoder))

    def has_room(self, pool: Pool, worker: Worker, tokens: int, prompt: Chain, more: int = 0) -> bool:
        """For a leg that puts so many tokens on the worker, and for KV of the prompt and `more` tokens."""
        return pool.has_room(worker, tokens) and self.held.has_room(worker, prompt, more)

    def prefill_pool(self, run: Run) -> Pool:
        return self._placement.routes[run.call.model].prefill

    def decode_pool(self, run: Run) -> Pool:
        return self._placement.routes[run.call.model].decode

    def _next(self, now: float, queue: Mapping[_Waiting, None], full: set[Pool]) -> _Waiting | None:
        """The first whose prompt is cached or that has waited long for such, else the first, of pools not `full`."""
        able = [each for each in islice(queue, LOOKED_AT) if self.decode_pool(each.run) not in full]
        first = next((each for each in able if self._goes_first(now, each)), None)
        return first or next((each for each in queue if self.decode_pool(each.run) not in full), None)

    def _goes_first(self, now: float, waiting: _Waiting) -> bool:
        if now - waiting.since >= self._settings.cached_first_s:
            return True
        run = waiting.run
        return self._placement.knows_most(
            self.prefill_pool(run), self._prompts.key(run), self._prompts.chain(run, CHUNK_TOKENS)
        )

    def _decoder(self, run: Run, chain: Chain) -> Worker | None:
        pool, call = self.decode_pool(run), run.call
        fitting = [
            worker
            for worker in pool.ready()
            if self.has_room(pool, worker, call.prompt + call.output, chain, call.output)
        ]
        return min(fitting, key=pool.load, default=None)
