"""Whose turn it is on a device that decode workers of several models share.

A decode step reads all weights of its model, however few calls are in it. Where models compute a step each in turn, all
have few calls in their steps. Where one finishes its calls first, those of the others gather meanwhile and then go
through each step together: exhaustive service, as polling systems call it (Takagi, 1986), of queues that are served in
batches. Nobody waits long for that: a call that has waited for its bound begins beside the others, and one that has
computed for as long keeps nobody waiting any more. They then share the device as they would without turns.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prefillshare.router.pool import Pool, Worker


@dataclass(slots=True, eq=False)
class Place:
    """A call's, from when it asks for the device until it leaves."""

    worker: str
    begun: float | None = None  # when, in seconds; None: it waits
    began: asyncio.Event = field(default_factory=asyncio.Event)  # for who awaits it


class Device:
    """Who computes on one device, and who waits for it. Times are the caller's, so that simulations can use it too."""

    def __init__(self, longest_s: float) -> None:
        """`longest_s`: for so long a call keeps those of other workers waiting."""
        self._longest_s = longest_s
        self._computing: set[Place] = set()
        self._waiting: dict[Place, None] = {}  # in the order in which they asked

    # Each returns who begins by that.

    def ask(self, now: float, place: Place) -> list[Place]:
        """Begins if its worker computes already, or nobody does that keeps it waiting; else it waits."""
        self._waiting[place] = None
        joins = any(other.worker == place.worker for other in self._computing)
        return self._begin(now, place.worker) if joins or not self._is_held(now) else []

    def overdue(self, now: float, place: Place) -> list[Place]:
        """It has waited for long enough: all calls that wait for its worker begin."""
        return self._begin(now, place.worker) if place.begun is None else []

    def leave(self, now: float, place: Place) -> list[Place]:
        """It needs the device no longer, if it ever did. When nobody computes any more that keeps others waiting, all
        calls begin of the worker whose first one has waited for longest."""
        self._waiting.pop(place, None)
        self._computing.discard(place)
        first = next(iter(self._waiting), None)
        return [] if first is None or self._is_held(now) else self._begin(now, first.worker)

    def _is_held(self, now: float) -> bool:
        return any(place.begun is not None and now - place.begun < self._longest_s for place in self._computing)

    def _begin(self, now: float, worker: str) -> list[Place]:
        begun = [place for place in self._waiting if place.worker == worker]
        for place in begun:
            del self._waiting[place]
            self._computing.add(place)
            place.begun = now
            place.began.set()
        return begun


class Turns:
    """Of all devices that a router knows to be shared: those that its workers name."""

    def __init__(self, longest_s: float, waited: Callable[[Pool, float], None] = lambda pool, seconds: None) -> None:
        """
        Args:
            longest_s: for so long a call waits for others, or keeps them waiting. 0: there are no turns.
            waited: told how long each call of a shared device has waited.
        """
        self._longest_s = longest_s
        self._waited = waited
        self._devices: dict[str, Device] = {}

    @asynccontextmanager
    async def of(self, pool: Pool, worker: Worker) -> AsyncIterator[float | None]:
        """Entered when the call may go to its worker, with the seconds that it has waited, or None where there are no
        turns. Leaving is the end of its turn, also of one that never came."""
        if worker.device is None or not self._longest_s:
            yield None
            return
        device = self._devices.setdefault(worker.device, Device(self._longest_s))
        now = asyncio.get_running_loop().time
        asked, place = now(), Place(worker.name)
        device.ask(asked, place)
        try:
            await self._begun(device, place)
            waited_s = now() - asked
            self._waited(pool, waited_s)
            yield waited_s
        finally:
            device.leave(now(), place)

    async def _begun(self, device: Device, place: Place) -> None:
        try:
            async with asyncio.timeout(self._longest_s):
                await place.began.wait()
        except TimeoutError:
            device.overdue(asyncio.get_running_loop().time(), place)
