"""A call's right to run both legs: room on a decode worker and on a prefill worker, reserved before leg 1 begins."""

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

from prefillshare.router.flow.need import Need
from prefillshare.router.placement.chunks import Chain
from prefillshare.router.placement.placement import HasRoom, Placed
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute


class Rooms(Protocol):
    """What a `Ticket` knows of limits; `FlowControl` has them."""

    def has_room(self, pool: Pool, worker: Worker, tokens: int, prompt: Chain, more: int = 0) -> bool:
        """For a leg that puts so many tokens on the worker, and for KV of the prompt and `more` tokens."""

    def hold(self, worker: Worker, prompt: Chain, more: int = 0) -> Callable[[], None]:
        """Counts that KV until what is returned is called."""

    def freed(self) -> None:
        """Something has been released."""


class Ticket:
    """Reservations on one worker of each pool.

    They hold the room, not the worker: placement may choose another that has as much, and the leg's lease takes the
    reservation's place. There is no moment between the two in which somebody else could take it. A call that is tried
    again has no reservation left; it is placed where there is room, else wherever placement wants it: it has been let
    in, and what it had prefilled must not wait.
    """

    def __init__(
        self,
        rooms: Rooms,
        route: ModelRoute,
        need: Need,
        prompt: Chain,
        reserved: dict[str, Callable[[], None]],
        waited_s: float,
        kv_lease_s: float,
        pull_timeout_s: float,
        measured: Callable[[int], None] = lambda tokens: None,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            prompt: that of the request, for the call's whole life: by its hashes it shares with calls before leg 1.
            reserved: ends what is reserved, the room in either leg ("prefill", "decode") and that for KV, where leg 1
                leaves it ("parked") and where leg 2 needs it ("kv").
            kv_lease_s: for so long after leg 1, a prefill worker keeps KV that nobody pulls, whatever becomes of the
                call.
            pull_timeout_s: for so long after leg 2 was sent, the KV is counted on the prefill worker if no answer
                begins: one that is not streamed begins with its end, and a pull that takes longer is refused.
            measured: told how many tokens the prompt has in truth.
            taken: told when no decode worker will read the prompt's KV from the prefill worker any more.
        """
        self.prompt = prompt
        self.waited_s = waited_s  # in the queue
        self._rooms = rooms
        self._route = route
        self._need = need
        self._reserved = reserved
        self._kv_lease_s = kv_lease_s
        self._pull_timeout_s = pull_timeout_s
        self._measured = measured
        self._taken = taken
        self._lease_end: float | None = None  # that of the last leg 1, by the event loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def room_to_prefill(self) -> HasRoom:
        """Which workers have room for leg 1, now that the room that was reserved for it is given up.

        What is chosen by it goes to `prefills_on` before anybody else can take the room, so without an await between.
        """
        pool, prompt = self._route.prefill, self.prompt
        self._release("prefill", "parked")
        self._stop_timer()
        self._lease_end = None
        return lambda worker, tokens: self._rooms.has_room(pool, worker, tokens, prompt)

    def prefills_on(self, worker: Worker) -> None:
        """`worker` was chosen for leg 1."""
        self._reserved["parked"] = self._rooms.hold(worker, self.prompt)

    def full(self) -> Collection[Worker]:
        """Prefill workers that have no room for a second leg 1 beside the first."""
        pool, tokens = self._route.prefill, self._need.prompt
        return [worker for worker in pool.workers if not self._rooms.has_room(pool, worker, tokens, self.prompt)]

    def prefilled_by(self, worker: Worker) -> None:
        """Another worker than the first was faster in leg 1, and has the KV."""
        self._release("parked")
        self.prefills_on(worker)

    def room_to_decode(self) -> HasRoom:
        """The same for leg 2 and `decodes_on`."""
        pool, prompt, output = self._route.decode, self.prompt, self._need.output
        self._release("decode", "kv")
        return lambda worker, tokens: self._rooms.has_room(pool, worker, tokens + output, prompt, self._more(tokens))

    def decodes_on(self, placed: Placed) -> Placed:
        """What was chosen for leg 2. Returns it with all that the leg puts on the worker, the answer included."""
        self._reserved["kv"] = self._rooms.hold(placed.worker, self.prompt, self._more(placed.tokens))
        self._measured(placed.tokens)
        return placed._replace(tokens=placed.tokens + self._need.output)

    def _more(self, tokens: int) -> int:
        """What the prompt, of so many tokens in truth, needs beyond its estimate, and the answer."""
        return max(0, tokens - self.prompt.tokens) + self._need.output

    def prefilled(self) -> None:
        """Leg 1 is over: its KV waits for a decode worker."""
        self._lease_end = asyncio.get_running_loop().time() + self._kv_lease_s
        self._rooms.freed()

    def sent(self) -> None:
        """Leg 2 goes to its worker now."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._pull_timeout_s, self.pulled)

    def not_taken(self) -> None:
        """The decode worker has not taken leg 2 up: the KV still waits."""
        self._stop_timer()

    def pulled(self) -> None:
        """A decode worker has the KV: the prefill worker needs no room for it any more. May be told often."""
        self._stop_timer()
        self._taken()
        if "parked" in self._reserved:
            self._release("parked")
            self._rooms.freed()

    def decoded(self) -> None:
        """Leg 2 has ended or failed: the decode worker has nothing of the call any more."""
        self._release("kv")

    def close(self) -> None:
        """No worker is needed any more, however the call has ended. Leases must have ended; may be told twice."""
        if "parked" in self._reserved and self._lease_end is not None and self._timer is None:
            self._leave_parked(self._lease_end)
        self._stop_timer()
        self._release(*list(self._reserved))
        self._rooms.freed()

    def _leave_parked(self, lease_end: float) -> None:
        """No worker knows that the call has ended, so the KV stays where it is, and counts, until its lease ends."""
        release, rooms = self._reserved.pop("parked"), self._rooms

        def free() -> None:
            release()
            rooms.freed()

        asyncio.get_running_loop().call_at(lease_end, free)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _release(self, *kinds: str) -> None:
        for kind in kinds:
            if release := self._reserved.pop(kind, None):
                release()
