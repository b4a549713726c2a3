"""The requests of a trace put together to sessions.

A request *goes on from* another if it begins with the blocks of the other's prompt and has room for its answer. What
stood last in a prompt may be missing from the next, as a role's instructions are; so up to `TAIL` tokens may. Where
rows say which session they are of, a request that does not go on from the one before restarts.

Else sessions are inferred. Blocks that only one session has had are its own: a request that begins with them, and with
the whole prompt behind them, goes on from it. Where several sessions have had the blocks, or part of a prompt is
missing, the time has to fit as well: the request comes at once when the answer is there, or is longer and comes within
the time that a tool takes (`TOOL_S`). That is a guess. A new trial of a task cannot be told from a session of its own,
and what goes on from a prompt of less than a block is not found.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field

# The instructions of the roles that ship with the project have up to 25 tokens. A trial shorter than this is taken for
# the beginning of the next one.
TAIL = 64
TOOL_S = 2.0  # the tools of the fitted families take no longer

_ROUNDING_S = 0.002  # timestamps are whole milliseconds


class Request(BaseModel):
    """A row; other fields are not read."""

    timestamp: Annotated[float, Field(ge=0)]
    input_length: Annotated[int, Field(ge=1, validation_alias=AliasChoices("input_length", "input_tokens"))]
    output_length: Annotated[int, Field(ge=1, validation_alias=AliasChoices("output_length", "output_tokens"))]
    hash_ids: tuple[int, ...]
    session_id: str | int | None = None


class Chain:
    """The requests of a session, by trial. Those of a trial go on from each other."""

    def __init__(self, first: Request, block_size: int) -> None:
        self.trials = [[first]]
        self._block_size = block_size
        self._context = 0  # tokens that the last prompt's context has at least: what stood before, and the answer

    @property
    def last(self) -> Request:
        return self.trials[-1][-1]

    def kept(self, request: Request) -> range:
        """How many tokens of the last prompt `request` may go on from; empty if it does not go on from it."""
        kept = _kept(self.last, request, self._block_size)
        return range(max(self._context, kept.start), kept.stop)

    def add(self, request: Request) -> None:
        if kept := self.kept(request):
            self._context = kept.start + self.last.output_length
            self.trials[-1].append(request)
        else:
            self._context = 0
            self.trials.append([request])


def chains(requests: Sequence[Request], block_size: int, token_s: float) -> list[Chain]:
    """In order of their beginnings. `requests` are in order of time; an answer takes `token_s` for each token."""
    found: list[Chain] = []
    named: dict[str | int, Chain] = {}
    unnamed = _Unnamed(token_s)
    for request in requests:
        name = request.session_id
        chain = unnamed.before(request) if name is None else named.get(name)
        if chain is None:
            chain = Chain(request, block_size)
            found.append(chain)
        else:
            chain.add(request)
        if name is None:
            unnamed.tell(chain)
        else:
            named[name] = chain
    return found


def kept_tokens(trial: Sequence[Request], block_size: int) -> Iterator[int]:
    """How much of each prompt of a trial stays in the next: as much as can, with room for the answers behind it."""
    kept = [trial[-1].input_length]
    for after, before in pairwise(reversed(trial)):
        most = _kept(before, after, block_size)[-1]
        kept.append(min(most, kept[-1] - before.output_length))
    return reversed(kept)


def _kept(before: Request, after: Request, block_size: int) -> range:
    full = before.input_length // block_size
    blocks = zip(before.hash_ids[:full], after.hash_ids, strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], blocks))
    if full > 1 and not common:
        return range(0)
    most = min(before.input_length, after.input_length - before.output_length)
    if common < full:  # they differ somewhere in the next block
        most = min(most, (common + 1) * block_size - 1)
    return range(max(common * block_size, before.input_length - TAIL), most + 1)


class _Unnamed:
    """Chains that requests without a session may go on from."""

    def __init__(self, token_s: float) -> None:
        self._token_s = token_s
        self._owners: dict[int, Chain | None] = {}  # of each block, the only chain that had it; None: several had
        self._recent: list[Chain] = []  # not answered yet, or not longer ago than `TOOL_S`

    def before(self, request: Request) -> Chain | None:
        """The chain that the request goes on from."""
        self._recent = [chain for chain in self._recent if self._since_answer(chain, request) <= TOOL_S]
        # A block's number says all that is before it, so the last one that was seen says most.
        block = next((block for block in reversed(request.hash_ids) if block in self._owners), None)
        if block is None:
            return None
        owner = self._owners[block]
        if owner and owner.last.input_length in owner.kept(request):
            return owner
        candidates = [owner] if owner else [chain for chain in self._recent if block in chain.last.hash_ids]
        timely = (chain for chain in candidates if self._is_timely(chain, request) and chain.kept(request))
        return min(timely, key=lambda chain: self._since_answer(chain, request), default=None)

    def tell(self, chain: Chain) -> None:
        """The chain has a new last request."""
        for block in chain.last.hash_ids:
            if self._owners.setdefault(block, chain) is not chain:
                self._owners[block] = None
        if chain not in self._recent:
            self._recent.append(chain)

    def _is_timely(self, chain: Chain, request: Request) -> bool:
        since = self._since_answer(chain, request)
        at_once = abs(since) <= _ROUNDING_S
        return at_once or (0 <= since <= TOOL_S and request.input_length > chain.last.input_length)

    def _since_answer(self, chain: Chain, request: Request) -> float:
        """Seconds."""
        last = chain.last
        return (request.timestamp - last.timestamp) / 1000 - last.output_length * self._token_s
