"""When sessions begin."""

import random
from dataclasses import dataclass

from prefillshare.errors import UserError


@dataclass(frozen=True, slots=True)
class Poisson:
    """Open loop: sessions arrive on their own, `rate` a second on average, however many are under way."""

    rate: float
    seed: int = 0

    def times(self, sessions: int) -> tuple[float, ...]:
        """Seconds from the beginning, ascending. The first session arrives at 0."""
        draw = random.Random(self.seed)
        times = [0.0]
        while len(times) < sessions:
            times.append(times[-1] + draw.expovariate(self.rate))
        return tuple(times[:sessions])

    def __str__(self) -> str:
        return f"poisson:{self.rate:g}"


@dataclass(frozen=True, slots=True)
class Trace:
    """Open loop: sessions arrive when they were recorded to, `speed` times as fast, however many are under way.

    `starts` are those of the workload's sessions (`Workload.starts`), which the text of a load does not say.
    """

    speed: float = 1.0
    starts: tuple[float, ...] = ()

    def times(self, sessions: int) -> tuple[float, ...]:
        """Seconds from the beginning, of the first so many sessions. The earliest of all arrives at 0."""
        return tuple(start / self.speed for start in self.starts[:sessions])

    def __str__(self) -> str:
        return "trace" if self.speed == 1 else f"trace:{self.speed:g}"


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed loop: `concurrent` sessions at a time, the next begins when one has ended."""

    concurrent: int

    def __str__(self) -> str:
        return f"closed:{self.concurrent}"


Open = Poisson | Trace
Arrivals = Open | Closed


def parse_arrivals(text: str, seed: int = 0) -> Arrivals:
    """`closed:4`, sessions at a time; `poisson:0.2`, sessions a second; `trace`, as recorded, or `trace:2`, twice as
    fast. Raises UserError for anything else."""
    kind, colon, value = text.partition(":")
    try:
        if kind == "closed" and int(value) > 0:
            return Closed(int(value))
        if kind == "poisson" and 0 < float(value) < float("inf"):
            return Poisson(float(value), seed)
        if kind == "trace" and 0 < (speed := float(value) if colon else 1.0) < float("inf"):
            return Trace(speed)
    except ValueError:
        pass
    raise UserError(
        f"load {text!r}: give `closed:4` (sessions at a time), `poisson:0.2` (sessions a second), `trace` (as they "
        "were recorded) or `trace:2` (twice as fast)"
    )
