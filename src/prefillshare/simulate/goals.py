"""What the calls of each model have to reach, and whether they do."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefillshare.errors import UserError
from prefillshare.percentile import percentile
from prefillshare.simulate.keeping_up import KEEPS_UP, Slowing
from prefillshare.simulate.layout import SystemName
from prefillshare.simulate.records import CallRecord, Totals

SHARE = 95  # per cent of each model's calls that have to meet a goal


@dataclass(frozen=True, slots=True)
class Reached:
    """The best that a system reached in steps of one size: with nobody else there, or with the most workers tried."""

    ttft_p95_s: float  # of the model that is slowest
    tpot_p95_s: float
    max_num_batched_tokens: int
    workers: int | None  # all cells together. None: nobody else was there, so that more workers would not help
    kept_up: float | None = None  # how fast work is done, to how fast it arrives. None: the run was too short to tell


@dataclass(frozen=True, slots=True)
class Goal:
    """In seconds, for 95 % of each model's calls: to the first token, and between tokens. That a system keeps up with
    the load is a goal in any case.

    Raises:
        UserError: a time that is not above 0, by field.
    """

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        for field in ("ttft_s", "tpot_s"):
            if not 0 < getattr(self, field) < float("inf"):
                raise UserError(f"{field.removesuffix('_s')}: a time above 0 seconds, found {getattr(self, field)}")

    def missed(self, reached: Reached) -> list[tuple[str, float, float]]:
        """Of each goal that is missed: its name, and what was wanted and reached: seconds, of `kept_up` a share."""
        both = (("ttft", self.ttft_s, reached.ttft_p95_s), ("tpot", self.tpot_s, reached.tpot_p95_s))
        missed = [(name, wanted, found) for name, wanted, found in both if found > wanted]
        if reached.kept_up is not None and reached.kept_up < KEEPS_UP:
            missed.append(("kept_up", KEEPS_UP, reached.kept_up))
        return missed


@dataclass(frozen=True, slots=True)
class Missed:
    """A system that misses a goal, in steps of whichever size."""

    system: SystemName
    goal: Goal
    at_best: tuple[Reached, ...]  # one for each size of steps that was tried

    def in_words(self) -> str:
        """A line for each goal missed, in steps of each size."""
        return "\n".join(
            self._line(reached, *missed) for reached in self.at_best for missed in self.goal.missed(reached)
        )

    def _line(self, reached: Reached, name: str, wanted: float, found: float) -> str:
        if name == "kept_up":
            return f"{name}: work done as fast as it arrives {self._with(reached)} {found:.2f} times as fast"
        return f"{name}: {wanted:g} s {self._with(reached)} {SHARE} % of a model's calls reach {found:.3g} s"

    def _with(self, reached: Reached) -> str:
        # Only the steps of workers that prefill and decode are of more than one size.
        steps = f" in steps of {reached.max_num_batched_tokens:,} tokens" if self.system == "colocated" else ""
        who = f"by {self.system}{steps}"
        if reached.workers is None:
            return f"cannot be met {who} with any number of workers: with nobody else there,"
        return f"is missed {who} even with {reached.workers} workers, many times as many as are kept busy:"

    def as_dict(self) -> dict[str, Any]:
        at_best = [
            {"goals_missed": [name for name, _, _ in self.goal.missed(reached)]} | asdict(reached)
            for reached in self.at_best
        ]
        return {"missed": self.in_words(), "at_best": at_best}


class GoalMissed(UserError):
    """This system misses a goal; another one may meet it."""

    def __init__(self, missed: Missed) -> None:
        super().__init__(missed.in_words())
        self.missed = missed


class ByModel:
    """A recorder of what goals are about, of the calls that arrive between two times."""

    def __init__(self, since: float = 0.0, until: float = float("inf")) -> None:
        self._since, self._until = since, until
        self.totals = Totals()
        self._leg_1: Mapping[str, list[float]] = defaultdict(list)
        self._ttft: Mapping[str, list[float]] = defaultdict(list)
        self._tpot: Mapping[str, list[float]] = defaultdict(list)
        self.session_s: list[float] = []
        self.slowing = Slowing(since, until)

    def call(self, record: CallRecord) -> None:
        if not self._since <= record.arrived_s <= self._until:
            return
        self.totals.call(record)
        self.slowing.call(record)
        self._leg_1[record.model].append(record.queue_s + record.prefill_s)
        self._ttft[record.model].append(record.ttft_s)
        if record.output_tokens > 1:
            self._tpot[record.model].append(record.tpot_s)

    def session(self, begun_s: float, ended_s: float) -> None:
        self.session_s.append(ended_s - begun_s)

    def leg_1(self, model: str) -> float:
        return _p95(self._leg_1[model])

    def ttft(self, model: str) -> float:
        return _p95(self._ttft[model])

    def tpot(self, model: str) -> float:
        return _p95(self._tpot[model])

    def worst_ttft(self) -> float:
        """Of the model that is slowest."""
        return max(map(self.ttft, list(self._ttft)), default=0.0)

    def worst_tpot(self) -> float:
        return max(map(self.tpot, list(self._tpot)), default=0.0)


def _p95(values: list[float]) -> float:
    return percentile(values, SHARE / 100) or 0.0  # of none
