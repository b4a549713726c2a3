"""The waiting calls of all decode pools: a fair queue for each, and whose turn it is.

What calls wait for is shared fairly among those that wait for it. Where a decode pool is full, that is its own room:
its tenants come in the order of its queue. Where it is not, its calls wait for the prefill workers of their base, with
those of other models: tenants then come in the order of what they have had of these, in whichever of their pools.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from weakref import WeakKeyDictionary

from prefillshare.router.call import Call
from prefillshare.router.flow.fair import Entry, FairQueue, Shares
from prefillshare.router.flow.need import Need
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.placement.chunks import Chain
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute


@dataclass(slots=True, eq=False)
class QueuedCall:
    """A call, and where its ticket or its refusal goes."""

    call: Call
    tenant: str
    route: ModelRoute
    need: Need
    prompt: Chain
    size: float | None  # bytes of the text that the prompt is made of; None for token ids
    since: float  # on the clock of `FlowControl`
    outcome: asyncio.Future[Ticket]


class Queues:
    """A pool that is full stops nobody but its own calls. Of one tenant's calls that can go on, pools take turns."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._queues: dict[Pool, FairQueue[QueuedCall]] = {}
        self._turns = count()
        self._shares: WeakKeyDictionary[Pool, Shares] = WeakKeyDictionary()  # by prefill pool
        self.full: set[Pool] = set()  # decode pools whose calls wait for room there; the others' wait to be prefilled

    def of(self, pool: Pool) -> FairQueue[QueuedCall]:
        """An empty queue is not kept: with nobody waiting there is nothing to be fair about."""
        return self._queues.get(pool) or FairQueue(self._weights)

    def __iter__(self) -> Iterator[Pool]:
        """Pools that calls wait for."""
        return iter(tuple(self._queues))

    def first(self, pool: Pool, preferred: Callable[[QueuedCall], bool] | None = None) -> Entry[QueuedCall] | None:
        """Whose turn it is in the pool's queue; as `FairQueue.first`."""
        queue = self.of(pool)
        return queue.first(preferred, None if pool in self.full else self._shares_of(queue))

    def next_of(self, heads: Iterable[Entry[QueuedCall]]) -> list[Entry[QueuedCall]]:
        """Of calls that wait for the same prefill workers, each the first of its queue, those of the tenant that is
        next. The pool in which it was served longest ago comes first, so that none of its models waits for ever.
        """
        by_turn = sorted(heads, key=lambda head: self._queues[head.item.route.decode].turn(head))
        tags = [self._tag(head) for head in by_turn]
        lowest = min(tags, default=0.0)
        return [head for head, tag in zip(by_turn, tags, strict=True) if tag == lowest]

    def _tag(self, entry: Entry[QueuedCall]) -> float:
        return self._of_prefill(entry.item.route.prefill).tag(entry.key)

    def push(self, queued: QueuedCall) -> Entry[QueuedCall]:
        queue = self._queues.setdefault(queued.route.decode, FairQueue(self._weights, self._turns))
        return queue.push(queued.tenant, queued.need.total, queued, stays=queued.call.goes_on)

    def serve(self, entry: Entry[QueuedCall]) -> None:
        """Takes out the first of its pool's queue."""
        pool, prefill = entry.item.route.decode, entry.item.route.prefill
        self._queues[pool].serve(entry)
        self._of_prefill(prefill).serve(entry.key, entry.tokens)
        self._drop_if_empty(pool, prefill)

    def remove(self, entry: Entry[QueuedCall]) -> None:
        pool, prefill = entry.item.route.decode, entry.item.route.prefill
        self._queues[pool].remove(entry)
        self._drop_if_empty(pool, prefill)

    def _drop_if_empty(self, pool: Pool, prefill: Pool) -> None:
        if len(self._queues[pool]):
            return
        del self._queues[pool]
        self.full.discard(pool)
        if not any(next(iter(queue)).item.route.prefill is prefill for queue in self._queues.values()):
            self._shares.pop(prefill, None)

    def _shares_of(self, queue: FairQueue[QueuedCall]) -> Shares | None:
        entry = next(iter(queue), None)
        return self._of_prefill(entry.item.route.prefill) if entry else None

    def _of_prefill(self, prefill: Pool) -> Shares:
        return self._shares.setdefault(prefill, Shares(self._weights))
