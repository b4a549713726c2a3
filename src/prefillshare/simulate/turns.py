"""Turns on devices that decode workers share, as the router has them (docs/flow.md), in simulated time."""

from collections.abc import Callable, Iterable, Mapping

from prefillshare.router import turns
from prefillshare.router.pool import Worker
from prefillshare.simulate.clock import Clock
from prefillshare.simulate.layout import Place

Begin = Callable[[float], None]  # at a time


class Turn:
    """Of one call."""

    __slots__ = ("_turns", "device", "place")

    def __init__(self, own: "Turns", device: turns.Device, place: turns.Place) -> None:
        self._turns, self.device, self.place = own, device, place

    def end(self, now: float) -> None:
        self._turns.let(now, self.device.leave(now, self.place))


class Turns:
    def __init__(self, clock: Clock, places: Mapping[Worker, Place], longest_s: float) -> None:
        """`places` are the devices that workers run on, `longest_s` is as in `router.turns`."""
        self._clock = clock
        self._longest_s = longest_s
        devices = {place: turns.Device(longest_s) for place in places.values()}
        self._devices = {worker.name: devices[place] for worker, place in places.items() if worker.role == "decode"}
        self._begins: dict[turns.Place, Begin] = {}  # of those that wait

    def ask(self, now: float, worker: str, begin: Begin) -> Turn | None:
        """`begin` is called when it is the worker's turn, which may be at once."""
        if not self._longest_s:
            begin(now)
            return None
        turn = Turn(self, self._devices[worker], turns.Place(worker))
        self._begins[turn.place] = begin
        self.let(now, turn.device.ask(now, turn.place))
        if turn.place.begun is None:
            self._clock.at(now + self._longest_s, self._overdue, turn)
        return turn

    def let(self, now: float, places: Iterable[turns.Place]) -> None:
        """These have begun."""
        for place in places:
            self._begins.pop(place)(now)

    def _overdue(self, now: float, turn: Turn) -> None:
        self.let(now, turn.device.overdue(now, turn.place))
