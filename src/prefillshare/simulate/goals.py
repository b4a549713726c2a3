"""What the calls of each model have to reach, and whether they do."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from prefillshare.errors import UserError
from prefillshare.simulate.records import CallRecord, Totals, percentile

SHARE = 95  # per cent of each model's calls that have to meet a goal


@dataclass(frozen=True, slots=True)
class Goal:
    """In seconds, for 95 % of each model's calls: to the first token, and between tokens.

    Raises:
        UserError: a time that is not above 0, by field.
    """

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        for field in ("ttft_s", "tpot_s"):
            if not 0 < getattr(self, field) < float("inf"):
                raise UserError(f"{field.removesuffix('_s')}: a time above 0 seconds, found {getattr(self, field)}")


class ByModel:
    """A recorder of what goals are about, of the calls that arrive between two times."""

    def __init__(self, since: float = 0.0, until: float = float("inf")) -> None:
        self._since, self._until = since, until
        self.totals = Totals()
        self._leg_1: Mapping[str, list[float]] = defaultdict(list)
        self._ttft: Mapping[str, list[float]] = defaultdict(list)
        self._tpot: Mapping[str, list[float]] = defaultdict(list)
        self.session_s: list[float] = []

    def call(self, record: CallRecord) -> None:
        if not self._since <= record.arrived_s <= self._until:
            return
        self.totals.call(record)
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
    return percentile(sorted(values), SHARE)
