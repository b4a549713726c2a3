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
class Closed:
    """Closed loop: `concurrent` sessions at a time, the next begins when one has ended."""

    concurrent: int

    def __str__(self) -> str:
        return f"closed:{self.concurrent}"


Arrivals = Poisson | Closed


def parse_arrivals(text: str, seed: int = 0) -> Arrivals:
    """`closed:4`, sessions at a time, or `poisson:0.2`, sessions a second. Raises UserError for anything else."""
    kind, _, value = text.partition(":")
    try:
        if kind == "closed" and int(value) > 0:
            return Closed(int(value))
        if kind == "poisson" and 0 < float(value) < float("inf"):
            return Poisson(float(value), seed)
    except ValueError:
        pass
    raise UserError(f"load {text!r}: give `closed:4` (sessions at a time) or `poisson:0.2` (sessions a second)")
