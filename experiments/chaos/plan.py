"""What is done to which worker, and when: all of it follows from the seed."""

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop"]
Part = Literal["all", "server", "engine"]  # of a worker: its whole process group, or one of its two processes

_PAUSE_S = (4.0, 16.0)  # between two strikes
_STOP_S = (1.0, 25.0)
_KILLS = 0.35  # of the strikes


@dataclass(frozen=True, slots=True)
class Strike:
    """At `at_s` after the start, to the worker of that number. A stop lasts for `seconds`."""

    at_s: float
    worker: int
    kind: Kind
    part: Part
    seconds: float = 0.0


def make_plan(seed: int, duration_s: float, workers: int) -> list[Strike]:
    """The strikes of a run; a longer run of the same seed begins with those of a shorter one."""
    rng = random.Random(f"chaos {seed}")
    strikes: list[Strike] = []
    at_s = rng.uniform(*_PAUSE_S)
    while at_s < duration_s:
        kind: Kind = "kill" if rng.random() < _KILLS else "stop"
        part: Part = rng.choice(("all", "all", "server", "engine"))
        seconds = rng.uniform(*_STOP_S)  # drawn for kills, too, so that the rest of the plan does not hang on the kind
        worker = rng.randrange(workers)
        strikes.append(Strike(round(at_s, 1), worker, kind, part, round(seconds, 1) if kind == "stop" else 0.0))
        at_s += rng.uniform(*_PAUSE_S)
    return strikes
