"""The two tables, from the records alone."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.intervals import median_interval

Records = Sequence[dict[str, Any]]

DECODE_START = "<!-- table: python -m experiments.handoff_cost, decode speed -->"
TURNS_START = "<!-- table: python -m experiments.handoff_cost, second turn -->"
PARTS = {
    "prefill_queue": "leg 1: waiting in the prefill worker's queue",
    "prefill_compute": "leg 1: the base computes what it does not hold",
    "prefill_rest": "leg 1: the rest of it (HTTP, checking and returning token ids)",
    "handoff": "leg 2: handoff, until the KV is there",
    "decode_step": "leg 2: first decode step",
    "decode_rest": "leg 2: the rest of the decode worker (API server)",
    "router": "router, and HTTP between client, router and decode worker",
}


def decode_table(records: Records) -> str:
    """Markdown: medians over the rounds, and the median of the rounds' ratios with its interval."""
    lines = [
        "| answers at once | plain vLLM, ms a token | decode worker, ms a token | ratio (95 % interval) |",
        "|---|---|---|---|",
    ]
    for batch in sorted({record["batch"] for record in records}):
        plain, ours = (_by_round(records, batch, system) for system in ("plain", "ours"))
        ratio = _ratio([one / other for one, other in zip(ours, plain, strict=True)])
        lines.append(f"| {batch} | {statistics.median(plain):.1f} | {statistics.median(ours):.1f} | {ratio} |")
    return "\n".join(lines)


def turns_table(records: Records) -> str:
    """Markdown: medians over the sessions, and the median of the sessions' ratios with its interval.

    Medians of parts need not add up to the median of the whole.
    """
    turns = [[record for record in records if record["turn"] == turn] for turn in (1, 2)]

    def row(name: str, value: Callable[[dict[str, Any]], float], decimals: int = 0) -> str:
        first, second = (statistics.median(map(value, turn)) for turn in turns)
        return f"| {name} | {first:,.{decimals}f} | {second:,.{decimals}f} |"

    ratio = _ratio([two["first_token_ms"] / one["first_token_ms"] for one, two in zip(*turns, strict=True)])
    return "\n".join(
        [
            "| medians | first turn | second turn |",
            "|---|---|---|",
            row("prompt tokens", lambda record: record["prompt_tokens"]),
            row("tokens the base computed", lambda record: record["computed_tokens"]),
            row("MB pulled", lambda record: record["pulled_mb"], 1),
            row("**ms to the first token**", lambda record: record["first_token_ms"]),
            *(row(f"{label}, ms", _part(key), 1) for key, label in PARTS.items()),
            f"| **second turn / first turn (95 % interval)** | | {ratio} |",
        ]
    )


def _by_round(records: Records, batch: int, system: str) -> list[float]:
    found = {r["round"]: r["tpot_ms"] for r in records if (r["batch"], r["system"]) == (batch, system)}
    return [found[number] for number in sorted(found)]


def _part(key: str) -> Callable[[dict[str, Any]], float]:
    return lambda record: float(record["parts_ms"][key])


def _ratio(ratios: Sequence[float]) -> str:
    interval = median_interval(ratios)
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"
