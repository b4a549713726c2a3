"""What is known of each call, and what is made of many."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prefillshare.percentile import percentile


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Of a call that was answered. Times in seconds, `arrived_s` since the run began; lengths in tokens."""

    session: str
    turn: int
    model: str
    arrived_s: float
    queue_s: float  # before the prefill worker took it
    prefill_s: float  # from there to the end of leg 1
    ttft_s: float  # from arrival to the first token
    tpot_s: float  # between tokens after the first; 0 if there was one only
    latency_s: float
    prompt_tokens: int
    cached_tokens: int  # of the prompt, in the prefill worker's cache
    output_tokens: int
    pulled_tokens: int  # of the prompt, brought to the decode worker
    prefill_worker: str = ""
    decode_worker: str = ""


class Recorder(Protocol):
    def call(self, record: CallRecord) -> None: ...

    def session(self, begun_s: float, ended_s: float) -> None: ...


class Records:
    """Keeps every record."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.sessions: list[tuple[float, float]] = []

    def call(self, record: CallRecord) -> None:
        self.calls.append(record)

    def session(self, begun_s: float, ended_s: float) -> None:
        self.sessions.append((begun_s, ended_s))

    def until(self, limit_s: float) -> "Records":
        """What had ended by then."""
        records = Records()
        records.calls += (call for call in self.calls if call.arrived_s + call.latency_s <= limit_s)
        records.sessions += ((begun, ended) for begun, ended in self.sessions if ended <= limit_s)
        return records


def of_client(row: Mapping[str, Any]) -> CallRecord:
    """A benchmark's row of a call that was answered. What happened behind the server is not in it: queue, leg 1, what
    was pulled and by whom are left empty."""
    further = row["output_tokens"] - 1
    return CallRecord(
        session=row["session"],
        turn=row["turn"],
        model=row["model"],
        arrived_s=row["at"],
        queue_s=0.0,
        prefill_s=0.0,
        ttft_s=row["ttft_s"],
        tpot_s=(row["latency_s"] - row["ttft_s"]) / further if further > 0 else 0.0,
        latency_s=row["latency_s"],
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        pulled_tokens=0,
    )


class Totals:
    """Sums, and the latencies of all calls and sessions in a few bytes each: for millions of them.

    Only what arrives from `since` on counts, so that the beginning, with its empty caches, can be left out.
    """

    def __init__(self, since: float = 0.0) -> None:
        self._since = since
        self.latency, self.ttft, self.tpot, self.session_s = array("f"), array("f"), array("f"), array("f")
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.pulled_tokens = 0
        self.begun, self.ended = float("inf"), 0.0

    def call(self, record: CallRecord) -> None:
        if record.arrived_s < self._since:
            return
        self.latency.append(record.latency_s)
        self.ttft.append(record.ttft_s)
        if record.output_tokens > 1:
            self.tpot.append(record.tpot_s)
        self.prompt_tokens += record.prompt_tokens
        self.cached_tokens += record.cached_tokens
        self.output_tokens += record.output_tokens
        self.pulled_tokens += record.pulled_tokens
        self.begun = min(self.begun, record.arrived_s)
        self.ended = max(self.ended, record.arrived_s + record.latency_s)

    def session(self, begun_s: float, ended_s: float) -> None:
        if begun_s >= self._since:
            self.session_s.append(ended_s - begun_s)

    def summary(self) -> dict[str, float]:
        """Means, p50, p95 and p99 in seconds, rates a second, the hit ratio of the prefill side."""
        seconds = max(self.ended - self.begun, 1e-9)
        found: dict[str, float] = {"calls": len(self.latency), "sessions": len(self.session_s), "seconds": seconds}
        for name in ("latency", "ttft", "tpot", "session_s"):
            values = getattr(self, name)
            found |= percentiles(name.removesuffix("_s"), values)
            found[f"{name.removesuffix('_s')}_mean_s"] = sum(values) / len(values) if values else 0.0
        return found | {
            "calls_per_s": len(self.latency) / seconds,
            "sessions_per_s": len(self.session_s) / seconds,
            "output_tokens_per_s": self.output_tokens / seconds,
            "hit_ratio": self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0,
            "computed_tokens": self.prompt_tokens - self.cached_tokens,
            "pulled_tokens": self.pulled_tokens,
        }


def summarise(records: Records, since: float = 0.0) -> dict[str, float]:
    totals = Totals(since)
    for record in records.calls:
        totals.call(record)
    for begun, ended in records.sessions:
        totals.session(begun, ended)
    return totals.summary()


def percentiles(name: str, values: Sequence[float]) -> Mapping[str, float]:
    """The values that so many per cent of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return {f"{name}_p{share}_s": percentile(ordered, share / 100) or 0.0 for share in (50, 95, 99)}
