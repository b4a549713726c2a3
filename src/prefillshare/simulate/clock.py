"""Simulated time: events in order, devices whose time is shared by those who run on them, and a host whose devices slow
each other down."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

from prefillshare.simulate.cost import Slowdown, Work

Event = Callable[[float, Any], None]


class Clock:
    """Events happen in order of time; those of one time in the order in which they were announced."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Event, Any]] = []
        self._order = count()
        self.happened = 0  # events so far

    def at(self, when: float, event: Event, argument: Any = None) -> None:
        """Calls `event(when, argument)` at `when`, in seconds."""
        heappush(self._events, (when, next(self._order), event, argument))

    def run(self) -> float:
        """Lets everything happen; returns the time of the last event."""
        events, now, happened = self._events, 0.0, 0
        while events:
            now, _, event, argument = heappop(events)
            event(now, argument)
            happened += 1
        self.happened += happened
        return now


class Tenant(Protocol):
    """Who uses a device."""

    weight: float  # of its part of the device while others run there

    def done(self, now: float) -> None:
        """The time it asked for is over."""


class Device:
    """A GPU, or a CPU core: those who run on it at one time share it by their weights (processor sharing).

    Time is kept in device-seconds: how much each of the present tenants of weight 1 has received since the beginning.
    All of them progress equally, those of another weight in proportion, so one heap of goals in that unit says who is
    next, however often the number of tenants changes. A device that is slowed down gives out fewer of them in a second.
    """

    def __init__(self, clock: Clock, host: "Host | None" = None) -> None:
        self._clock = clock
        self._host = host
        self._speed = 1.0  # device-seconds that it gives out in a second
        self.work: dict[Tenant, Work] = {}  # of the tenants that run
        if host:
            host.devices.append(self)
        self._received = 0.0
        self._since = 0.0  # when `_received` was brought up to date
        self._goals: list[tuple[float, int, Tenant]] = []
        self._current: dict[Tenant, int] = {}  # the tenants that run, each with the number of its valid goal
        self._weight = 0.0  # of all that run
        self._order = count()
        self._announced = 0  # number of the event that is valid
        self.busy_s = 0.0

    def start(self, now: float, tenant: Tenant, seconds: float, work: Work = "prefill") -> None:
        """`tenant`, which does not run here yet, is `done` when it has received that many device-seconds."""
        self._advance(now)
        self._weight += tenant.weight
        self._aim(tenant, self._received + seconds / tenant.weight)
        self._now_does(now, tenant, work)
        self._announce()

    def run_at(self, now: float, speed: float) -> None:
        """From now on it gives out `speed` device-seconds in a second."""
        if speed != self._speed:
            self._advance(now)
            self._speed = speed
            self._announce()

    def shorten(self, now: float, tenant: Tenant, goal: float) -> None:
        """Lets `tenant` be done earlier: when it has `received` as many device-seconds as `goal`."""
        self._advance(now)
        self._aim(tenant, goal / tenant.weight)
        self._announce()

    def busy(self, now: float) -> float:
        """Seconds until now in which anyone ran."""
        self._advance(now)
        return self.busy_s

    def received(self, now: float, tenant: Tenant) -> float:
        """Device-seconds that it has received, as if it had been running from the beginning of time."""
        self._advance(now)
        return self._received * tenant.weight

    def _now_does(self, now: float, tenant: Tenant, work: Work | None) -> None:
        if self._host is None:
            return
        if work is None:
            del self.work[tenant]
        else:
            self.work[tenant] = work
        self._host.changed(now)

    def _aim(self, tenant: Tenant, goal: float) -> None:
        number = self._current[tenant] = next(self._order)
        heappush(self._goals, (goal, number, tenant))

    def _advance(self, now: float) -> None:
        if self._current:
            elapsed = now - self._since
            self.busy_s += elapsed
            self._received += elapsed * self._speed / self._weight
        self._since = now

    def _announce(self) -> None:
        goals, current = self._goals, self._current
        while goals and current.get(goals[0][2]) != goals[0][1]:
            heappop(goals)
        self._announced += 1
        if goals:
            wait = max(0.0, goals[0][0] - self._received) * self._weight / self._speed
            self._clock.at(self._since + wait, self._reached, self._announced)

    def _reached(self, now: float, number: int) -> None:
        if number != self._announced:
            return
        self._advance(now)
        goal, _, tenant = heappop(self._goals)
        self._received = goal  # exactly, so that rounding does not add up
        del self._current[tenant]
        self._weight -= tenant.weight
        self._now_does(now, tenant, None)
        self._announce()
        tenant.done(now)


class Host:
    """Devices that share a memory: a step takes longer on one while another is busy.

    Beside several it takes as long as beside the one that slows it down most; of those who share a device, which take
    turns, the mean counts.
    """

    def __init__(self, slowdown: Slowdown) -> None:
        self.devices: list[Device] = []
        self._slowdown = slowdown

    def changed(self, now: float) -> None:
        """To be called when a device has begun something or is done with it."""
        for device in self.devices:
            if device.work:
                others = [other for other in self.devices if other is not device and other.work]
                times = [max([1.0, *(self._beside(work, other) for other in others)]) for work in device.work.values()]
                device.run_at(now, sum(1 / each for each in times) / len(times))

    def _beside(self, work: Work, other: Device) -> float:
        found = [self._slowdown.of(work, each) for each in other.work.values()]
        return sum(found) / len(found)
