"""The waiting calls of all decode pools: a fair queue for each, and whose turn it is."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prefillshare.router.admission import Call
from prefillshare.router.flow.fair import Entry, FairQueue
from prefillshare.router.flow.need import Need
from prefillshare.router.flow.ticket import ReservedTicket
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
    outcome: asyncio.Future[ReservedTicket]


class Queues:
    """A pool that is full stops nobody but its own calls. Of those that can go on, pools take turns."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._queues: OrderedDict[Pool, FairQueue[QueuedCall]] = OrderedDict()  # the one served last comes last

    def of(self, pool: Pool) -> FairQueue[QueuedCall]:
        """An empty queue is not kept: with nobody waiting there is nothing to be fair about."""
        return self._queues.get(pool) or FairQueue(self._weights)

    def __iter__(self) -> Iterator[Pool]:
        """Pools that calls wait for; the one served longest ago first."""
        return iter(tuple(self._queues))

    def push(self, queued: QueuedCall) -> Entry[QueuedCall]:
        queue = self._queues.setdefault(queued.route.decode, FairQueue(self._weights))
        return queue.push(queued.tenant, queued.need.total, queued, stays=queued.call.goes_on)

    def serve(self, entry: Entry[QueuedCall]) -> None:
        """Takes out the first of its pool's queue."""
        pool = entry.item.route.decode
        self._queues[pool].serve(entry)
        self._queues.move_to_end(pool)
        self._drop_if_empty(pool)

    def remove(self, entry: Entry[QueuedCall]) -> None:
        pool = entry.item.route.decode
        self._queues[pool].remove(entry)
        self._drop_if_empty(pool)

    def _drop_if_empty(self, pool: Pool) -> None:
        if not len(self._queues[pool]):
            del self._queues[pool]
