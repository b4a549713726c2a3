"""From the answers of a phase to its figures, and from those of all rounds to the table."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.intervals import median_interval
from experiments.overload.load import Answer
from prefillshare.percentile import percentile

START = "<!-- table: python -m experiments.overload -->"
Figures = dict[str, float]

_ROWS = (
    ("calls a second that arrive", "arrived_per_s", 1),
    ("calls a second that are answered", "answered_per_s", 2),
    ("output tokens a second", "tokens_per_s", 0),
    ("refused, % of calls", "refused_percent", 0),
    ("seconds until a refusal, p50", "refusal_p50_s", 4),
    ("seconds until a refusal, p99", "refusal_p99_s", 4),
    ("seconds in the queue, p95 of answered calls", "queue_p95_s", 2),
    ("seconds to the first token, p95 of answered calls", "first_token_p95_s", 2),
    ("**seconds to the end, p95 of answered calls**", "p95_s", 2),
)


def figures(answers: Sequence[Answer], seconds: float, warm_up_s: float) -> Figures:
    """Of the calls that were sent after the warm-up, and of the work that was done in that time.

    Raises:
        ValueError: no call was answered.
    """
    sent = [answer for answer in answers if answer.sent >= warm_up_s]
    good = [answer for answer in sent if answer.status == 200]
    refused = [answer.seconds for answer in sent if answer.status == 429]
    done = [answer for answer in answers if answer.status == 200 and warm_up_s <= answer.ended < seconds]
    if not good or not done:
        raise ValueError("no call was answered: give it more seconds")
    measured_s = seconds - warm_up_s
    return {
        "arrived_per_s": len(sent) / measured_s,
        "answered_per_s": len(done) / measured_s,
        "tokens_per_s": sum(answer.tokens for answer in done) / measured_s,
        "refused_percent": 100 * len(refused) / len(sent),
        "refusal_p50_s": _percentile(refused, 0.5),
        "refusal_p99_s": _percentile(refused, 0.99),
        "queue_p95_s": _percentile([answer.waited_s for answer in good], 0.95),
        "first_token_p95_s": _percentile([(answer.first_token or 0.0) - answer.sent for answer in good], 0.95),
        "p50_s": _percentile([answer.seconds for answer in good], 0.5),
        "p95_s": _percentile([answer.seconds for answer in good], 0.95),
    }


def _percentile(values: Sequence[float], share: float) -> float:
    return percentile(values, share) or 0.0  # of nothing


def table(rounds: Sequence[dict[str, Figures]]) -> str:
    """Markdown: a column for each phase, medians over the rounds, and the two ratios that matter with their spread."""
    phases = list(rounds[0])
    lines = [f"| medians of {len(rounds)} rounds | {' | '.join(phases)} |", "|---" * (len(phases) + 1) + "|"]
    for label, name, decimals in _ROWS:
        values = (statistics.median(one[phase][name] for one in rounds) for phase in phases)
        lines.append(f"| {label} | {' | '.join(f'{value:,.{decimals}f}' for value in values)} |")
    for label, name in (("p95", "p95_s"), ("output tokens a second", "tokens_per_s")):
        cells = [_ratio([one[phase][name] / one["1x"][name] for one in rounds]) for phase in phases]
        lines.append(f"| **{label}, over that at 1x** (range) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(ratios: Sequence[float]) -> str:
    interval = median_interval(ratios)
    return f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def as_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [answer.record() for answer in answers]
