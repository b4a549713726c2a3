"""Tables and plot of docs/overhead.md, from the records alone."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.overhead.systems import DIRECT, ONE_LEG, OURS, RUST, TWO_LEGS

Records = Sequence[dict[str, Any]]

LATENCY_START = "<!-- table: python -m experiments.overhead, latency -->"
THROUGHPUT_START = "<!-- table: python -m experiments.overhead, throughput -->"
NAMES = {
    ONE_LEG: "bare reverse proxy, one leg",
    TWO_LEGS: "bare reverse proxy, two posts",
    OURS: "**PrefillShare's router**",
    RUST: "vllm-router (Rust)",
}
LATENCY_CELLS = {"latency-250": 250, "latency-2000": 2000, "latency-16000": 16_000}
_COLOURS = {ONE_LEG: "#bbbbbb", TWO_LEGS: "#4477aa", OURS: "#ee6677", RUST: "#228833"}


def latency_table(records: Records) -> str:
    """Markdown: what each system adds to the two legs without one, by the prompt's length."""
    sizes = " | ".join(f"{tokens:,} tokens: p50 | p99" for tokens in LATENCY_CELLS.values())
    lines = [f"| added ms, median of rounds (range) | {sizes} |", "|---" * (1 + 2 * len(LATENCY_CELLS)) + "|"]
    for system in _systems(records):
        cells = [
            _spread(added(records, cell, system, field)) for cell in LATENCY_CELLS for field in ("p50_ms", "p99_ms")
        ]
        lines.append(f"| {NAMES[system]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def throughput_table(records: Records) -> str:
    """Markdown: what one core of each system carries."""
    lines = [
        "| a core, median of rounds (range) | requests/s | streamed tokens/s | ms of CPU a request |",
        "|---|---|---|---|",
    ]
    for system in _systems(records):
        rates, tokens = per_core(records, "requests", system), per_core(records, "tokens", system)
        cost = 1000 / statistics.median(rates)
        lines.append(f"| {NAMES[system]} | {_spread(rates, 0)} | {_spread(tokens, 0)} | {cost:.2f} |")
    if RUST in _systems(records):
        share = _ratio(records, "requests"), _ratio(records, "tokens")
        lines.append(f"| PrefillShare's router / vllm-router | {share[0]:.2f} | {share[1]:.2f} | |")
    return "\n".join(lines)


def added(records: Records, cell: str, system: str, field: str) -> list[float]:
    """By round: the system's time less that of both legs without a router."""
    of = _by_round(records, cell, system, lambda record: float(record[field]))
    direct = _by_round(records, cell, DIRECT, lambda record: float(record[field]))
    return [one - other for one, other in zip(of, direct, strict=True)]


def per_core(records: Records, cell: str, system: str) -> list[float]:
    """By round: requests, or streamed tokens, in a second of the router's CPU time.

    Not by the clock: then it does not matter whether the load kept the core busy throughout.
    """
    streamed = cell == "tokens"
    return _by_round(
        records,
        cell,
        system,
        lambda record: record["requests"] * (record["answer_tokens"] if streamed else 1) / record["cpu_s"],
    )


def _ratio(records: Records, cell: str) -> float:
    ours, rust = (per_core(records, cell, system) for system in (OURS, RUST))
    return statistics.median(one / other for one, other in zip(ours, rust, strict=True))


def _systems(records: Records) -> list[str]:
    measured = {record["system"] for record in records}
    return [system for system in NAMES if system in measured]


def _by_round(records: Records, cell: str, system: str, value: Callable[[dict[str, Any]], float]) -> list[float]:
    found = {
        record["round"]: value(record) for record in records if (record["cell"], record["system"]) == (cell, system)
    }
    return [found[number] for number in sorted(found)]


def _spread(values: Sequence[float], decimals: int = 2) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{decimals}f} ({low:,.{decimals}f} to {high:,.{decimals}f})"


def draw(records: Records, file: Path) -> None:
    """Three panels of bars: added p50 at 2,000 tokens, requests and streamed tokens a core; lines for the range."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    systems = _systems(records)
    panels = {
        "added p50, ms (2,000 tokens)": [added(records, "latency-2000", system, "p50_ms") for system in systems],
        "requests/s a core": [per_core(records, "requests", system) for system in systems],
        "streamed tokens/s a core": [per_core(records, "tokens", system) for system in systems],
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(10, 2.6), layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        middles = [statistics.median(some) for some in values]
        errors = [
            [middle - min(some) for middle, some in zip(middles, values, strict=True)],
            [max(some) - middle for middle, some in zip(middles, values, strict=True)],
        ]
        colours = [_COLOURS[system] for system in systems]
        bars = axis.barh([NAMES[system].strip("*") for system in systems], middles, xerr=errors, color=colours)
        axis.bar_label(bars, fmt="{:,.2f}" if "ms" in title else "{:,.0f}", fontsize=8, padding=3)
        axis.set_title(title, fontsize=9)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis is not axes[0]:
            axis.set_yticks([])
    figure.savefig(file, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
