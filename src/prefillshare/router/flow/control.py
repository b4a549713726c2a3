"""Lets calls in when there is room for both of their legs, makes them wait until then, or refuses them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from prefillshare.router.call import Call
from prefillshare.router.errors import RouterError, model_removed, no_worker_up
from prefillshare.router.flow.bounds import excess_of
from prefillshare.router.flow.capacity import Capacities
from prefillshare.router.flow.density import Density
from prefillshare.router.flow.errors import Reason, overloaded
from prefillshare.router.flow.fair import Entry
from prefillshare.router.flow.held import HeldKV
from prefillshare.router.flow.longest import bounded, cut, longest
from prefillshare.router.flow.metrics import FlowMetrics
from prefillshare.router.flow.need import is_token_ids, need_of
from prefillshare.router.flow.queues import QueuedCall, Queues
from prefillshare.router.flow.service import ServiceTimes
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.legs import prefill_body
from prefillshare.router.placement.chunks import Chain, chain_of_request
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import FlowConfig


class FlowControl:
    """Of one router. A call is let in once, for all that it tries: see `Ticket`."""

    def __init__(
        self,
        settings: FlowConfig,
        routes: Mapping[str, ModelRoute],
        placement: Placement,
        capacities: Capacities,
        metrics: FlowMetrics,
        *,
        kv_lease_s: float,
        pull_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        taken: Callable[[str], None] = lambda call_id: None,
    ) -> None:
        """`taken` is told of each call whose KV no decode worker will read from its prefill worker any more."""
        self._settings = settings
        self._routes = routes
        self._placement = placement
        self._capacities = capacities
        self._metrics = metrics
        self._kv_times = (kv_lease_s, pull_timeout_s)
        self._clock = clock
        self._taken = taken
        self._queues = Queues(settings.weights)
        self._held = HeldKV(capacities.kv_limit)
        self._service = ServiceTimes()
        self._density = Density()

    @asynccontextmanager
    async def ticket(self, call: Call, tenant: str) -> AsyncIterator[Ticket]:
        """Around all that is done for a call. Leaving gives everything back; so does being cancelled while waiting.

        Raises:
            RouterError: 429 with `retry-after` when the queue is full or the wait would be too long, 503 when no worker
                is ready, 400 when no worker could ever take the call or its prompt cannot be made, 404 when its module
                is removed meanwhile.
        """
        route = self._routes[call.model]
        density = self._density.of(route.prefill, tenant)
        need = need_of(call.endpoint, call.body, self._settings.output_tokens, density)
        capacities = [self._capacities.of(worker) for worker in route.decode.ready()]
        try:
            need = bounded(need, call, capacities)
        except RouterError:
            self._metrics.refused(route.decode, "too_long", tenant)
            raise
        # Here, where an error is this call's alone, and once: whatever counts or places the call goes by this chain.
        prompt = chain_of_request(prefill_body(call, route.base, route.instructions), density)
        size = None if is_token_ids(call.body) else prompt.tokens * density
        future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        queued = QueuedCall(call, tenant, route, need, cut(prompt, capacities), size, self._clock(), future)
        ticket = await self._wait(queued)
        self._metrics.let_in(route.decode, ticket.waited_s)
        started = self._clock()
        try:
            yield ticket
            self._service.took(route.decode, self._clock() - started)
        finally:
            ticket.close()

    def waiting(self, pool: Pool) -> tuple[int, int]:
        """Calls and tokens in the queue of a decode pool."""
        queue = self._queues.of(pool)
        return len(queue), queue.tokens

    def longest_call(self, pool: Pool) -> int | None:
        """Tokens of prompt and answer that a decode pool takes; None while none is up, or one has not said it."""
        return longest(self._capacities.of(worker).longest_call for worker in pool.ready())

    def kv(self, worker: Worker) -> tuple[int, int | None]:
        """Tokens of KV that calls in flight need on the worker, what they share once, and how many it may be."""
        return self._held.tokens(worker), self._capacities.kv_limit(worker)

    def bytes_per_token(self, pool: Pool) -> dict[str, float]:
        """By tenant, what a token of text is taken for on a prefill pool, as far as that is learned from prompts."""
        return self._density.known(pool)

    def freed(self) -> None:
        """Lets in whoever has room now. To be called when that may have changed."""
        blocked: set[Pool] = set()
        while entry := self._next(blocked):
            queued = entry.item
            if queued.outcome.done():  # it was cancelled and has not run since
                self._queues.remove(entry)
            elif down := next((pool for pool in (queued.route.decode, queued.route.prefill) if not pool.ready()), None):
                self._refuse(entry, "no_worker", no_worker_up(down.name, down.why_down()))
            else:
                full = self._let_in(entry)
                blocked |= {full, queued.route.decode} if full else set()
                self._note_room(queued.route.decode, full)

    def _note_room(self, decode: Pool, full: Pool | None) -> None:
        """Whether the pool's calls wait for decode workers, by the last one of them that was looked at; while nobody
        can be prefilled, none is."""
        waiting = self._queues.first(decode)
        if full is decode:
            self._queues.full.add(decode)
        elif full or not waiting or next(self._decoders(waiting.item), None):
            self._queues.full.discard(decode)

    def removed(self, model: str) -> None:
        """The model is served no longer. Its calls that wait learn it now: no room that gets free would help them."""
        for pool in self._queues:
            for entry in list(self._queues.of(pool)):
                if entry.item.call.model == model:
                    self._refuse(entry, "removed", model_removed(model))
        self.freed()

    # What tickets ask (`Rooms`).

    def has_room(self, pool: Pool, worker: Worker, tokens: int, prompt: Chain, more: int = 0) -> bool:
        return pool.has_room(worker, tokens) and self._held.has_room(worker, prompt, more)

    def hold(self, worker: Worker, prompt: Chain, more: int = 0) -> Callable[[], None]:
        return self._held.hold(worker, prompt, more)

    # Arrival

    async def _wait(self, queued: QueuedCall) -> Ticket:
        entry = self._queues.push(queued)
        try:  # from here on: whatever fails, no entry and no ticket may stay behind with nobody waiting for it
            self.freed()
            goes_on = queued.call.goes_on
            if not (goes_on or queued.outcome.done()):
                self._refuse_some(entry)
            if queued.outcome.done():
                return queued.outcome.result()
            async with asyncio.timeout(None if goes_on else self._limit_s(queued)):
                return await queued.outcome
        except TimeoutError:
            if ticket := _given(queued):
                return ticket
            self._metrics.refused(queued.route.decode, "deadline", queued.tenant)
            raise self._too_late(entry) from None
        except BaseException:
            if ticket := _given(queued):  # at the moment of its cancellation, or before another call's failure
                ticket.close()
            raise
        finally:
            self._forget(entry)

    def _forget(self, entry: Entry[QueuedCall]) -> None:
        if entry in self._queues.of(entry.item.route.decode):
            self._queues.remove(entry)
            self.freed()  # the next one may need less room

    # Letting in

    def _next(self, blocked: set[Pool]) -> Entry[QueuedCall] | None:
        """The first call of the tenant that is next, of queues whose pools are not `blocked`; one that `_goes_first`
        before others.

        While the tenant has calls that go first, no other of its calls gets the room that they wait for, whichever
        queues they are in.
        """
        heads = [
            head
            for pool in self._queues
            if pool not in blocked
            and (head := self._queues.first(pool))
            and head.item.route.prefill not in blocked
            and not _is_full(head.item.route)  # so that few looks at a long queue are long
        ]
        heads = self._queues.next_of(head for head in heads if head.item.route.prefill is heads[0].item.route.prefill)
        preferred = (self._queues.first(head.item.route.decode, self._goes_first) for head in heads)
        return next((entry for entry in preferred if entry), None) or next(iter(heads), None)

    def _goes_first(self, queued: QueuedCall) -> bool:
        """Calls whose prompts are mostly cached go first, and those that have waited long for these.

        With more sessions than caches have room for, calls in the order of their arrival would find nothing: by the
        time that a session's turn comes, its context has been evicted for the others'. So the sessions that are in the
        caches are served until they end, and the others wait.
        """
        if self._clock() - queued.since >= self._settings.cached_first_s:
            return True
        return self._placement.knows_most(queued.route.prefill, queued.call.session, queued.prompt)

    def _let_in(self, entry: Entry[QueuedCall]) -> Pool | None:
        """Gives the call its ticket, or returns the pool that has no room for it."""
        queued = entry.item
        need, decode, prefill = queued.need, queued.route.decode, queued.route.prefill
        decoder = min(self._decoders(queued), key=decode.load, default=None)
        if decoder is None:
            return decode
        found = self._prefiller(queued)
        if found is None:
            return prefill
        prefiller, compute = found
        reserved = {
            "decode": decode.reserve(decoder, need.total),
            "prefill": prefill.reserve(prefiller, compute),
            "parked": self._held.hold(prefiller, queued.prompt),
            "kv": self._held.hold(decoder, queued.prompt, need.output),
        }
        waited_s = self._clock() - queued.since
        if self._queues.first(decode) is not entry:
            self._metrics.overtook(decode)
        self._queues.serve(entry)
        told = partial(self._measured, queued), partial(self._taken, queued.call.request_id)
        queued.outcome.set_result(
            Ticket(self, queued.route, need, queued.prompt, reserved, waited_s, *self._kv_times, *told)
        )
        return None

    def _measured(self, queued: QueuedCall, tokens: int) -> None:
        if queued.size is not None:
            self._density.saw(queued.route.prefill, queued.tenant, queued.size, tokens)

    def _decoders(self, queued: QueuedCall) -> Iterator[Worker]:
        """The decode workers with room."""
        pool, need = queued.route.decode, queued.need
        for worker in pool.ready():
            if self.has_room(pool, worker, need.total, queued.prompt, need.output):
                yield worker

    def _prefiller(self, queued: QueuedCall) -> tuple[Worker, int] | None:
        """A prefill worker with room, and what it has to compute.

        That is the whole prompt where that fits; only where it does not, what workers know of it is looked up.
        """
        pool, prompt, whole = queued.route.prefill, queued.prompt, queued.need.prompt
        for worker in sorted(pool.ready(), key=pool.load):
            if self.has_room(pool, worker, whole, prompt):
                return worker, whole
        compute = self._placement.to_compute(pool, prompt)
        fitting = [worker for worker, tokens in compute.items() if self.has_room(pool, worker, tokens, prompt)]
        best = min(fitting, key=compute.__getitem__, default=None)
        return None if best is None else (best, compute[best])

    # Refusing

    def _refuse_some(self, newcomer: Entry[QueuedCall]) -> None:
        """Keeps the queue within its limits; who has to go need not be the newcomer."""
        queued, settings = newcomer.item, self._settings
        pool = queued.route.decode
        if not all(map(self._capacities.has_told, (*pool.ready(), *queued.route.prefill.ready()))):
            return  # what they hold is known in a second; by one call at a time, nearly all of these would have to go
        queue, rivals = self._queues.of(pool), self._rivals(queued.route)
        in_flight = _in_flight(rivals)
        limited = sum(self._queues.of(rival).limited().tokens for rival in rivals)
        if excess := excess_of(queue.limited(), newcomer, limited, in_flight, settings):
            text = f"The workers for this model are busy, and {excess.why}. Try again later."
            for entry in excess.entries:
                retry_s = self._service.expect(pool, self._waiting_tokens(rivals) - entry.tokens, in_flight)
                self._refuse(entry, excess.reason, overloaded(text, retry_s))
            if newcomer in excess.entries:
                return
        ahead = queue.ahead_of(newcomer) + _own_part(newcomer, in_flight)
        # Tenants have equal shares, and the pools of one take turns: of each pool, about as much goes first.
        others = sum(min(self._queues.of(rival).tokens, ahead) for rival in rivals if rival is not pool)
        if self._service.expect(pool, ahead + others, in_flight) > self._limit_s(queued):
            self._refuse(newcomer, "deadline", self._too_late(newcomer))

    def _rivals(self, route: ModelRoute) -> list[Pool]:
        """The decode pools whose calls wait for the same room as this route's.

        That is its own where that is full. Where it is not, its calls wait for the prefill pool, with those of all
        other models of the base; what is in flight in its own decode pool, which may be nothing, then says nothing.
        """
        decode = route.decode
        first = self._queues.first(decode)
        if first is None or next(self._decoders(first.item), None) is None:
            return [decode]
        served = (other.decode for other in self._routes.values() if other.prefill is route.prefill)
        return list(dict.fromkeys((decode, *served)))

    def _waiting_tokens(self, pools: Iterable[Pool]) -> int:
        return sum(self._queues.of(pool).tokens for pool in pools)

    def _refuse(self, entry: Entry[QueuedCall], reason: Reason, error: RouterError) -> None:
        queued = entry.item
        if entry in self._queues.of(queued.route.decode):
            self._queues.remove(entry)
        if not queued.outcome.done():
            queued.outcome.set_exception(error)
        self._metrics.refused(queued.route.decode, reason, queued.tenant)

    def _limit_s(self, queued: QueuedCall) -> float:
        """How long the call may wait, from its arrival: what its client's patience leaves for serving it."""
        patience = queued.call.patience_s
        if patience is None:
            return self._settings.max_wait_s
        service = 0.0 if queued.call.stream else self._service.typical_s(queued.route.decode) or 0.0
        return min(self._settings.max_wait_s, max(0.0, patience - service))

    def _too_late(self, entry: Entry[QueuedCall]) -> RouterError:
        queued = entry.item
        pool, rivals = queued.route.decode, self._rivals(queued.route)
        within = f"{self._limit_s(queued):.3g} s"
        text = f"The workers for this model are busy; there is no room for this call within {within}."
        others = self._waiting_tokens(rivals) - (entry.tokens if entry in self._queues.of(pool) else 0)
        in_flight = _in_flight(rivals)
        return overloaded(text, self._service.expect(pool, others + _own_part(entry, in_flight), in_flight))


def _is_full(route: ModelRoute) -> bool:
    """Whether the prefill workers have no room for any call. Without a worker, calls wait for no room."""
    ready = route.prefill.ready()
    if not ready or not route.decode.ready():
        return False
    return not any(route.prefill.has_room(worker, 1) for worker in ready)


def _in_flight(pools: Iterable[Pool]) -> int:
    """Tokens."""
    return sum(pool.load(worker) for pool in pools for worker in pool.workers)


def _own_part(entry: Entry[QueuedCall], in_flight: int) -> int:
    """How many tokens have to leave for the call itself: however large it is, no more than there are."""
    return min(entry.tokens, in_flight)


def _given(queued: QueuedCall) -> Ticket | None:
    future = queued.outcome
    return future.result() if future.done() and not future.cancelled() and future.exception() is None else None
