"""What is shown of predicted runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.calibration.runs import FIGURES, OF_SESSIONS, SIDES, Compared

_VALUES = (*SIDES, "least", "most")  # of a ratio
_HITS = "hit_ratio"
RATIOS = {OF_SESSIONS: False, "calls_per_s": True}  # of `shared` to other systems; whether more is better


def table(runs: Sequence[Compared]) -> str:
    """Each cell: measured, simulated, and the error of the latter; medians over repeats. Then the systems' ratios."""
    lines = [f"| workload, load | system | {' | '.join(FIGURES.values())} |", f"|---|---|{'---|' * len(FIGURES)}"]
    for title, system in dict.fromkeys((run.title, run.system) for run in runs):
        within = [run for run in runs if (run.title, run.system) == (title, system)]
        cells = []
        for name in FIGURES:
            cells.append(_cell(within, name))
        lines.append(f"| {title} | {system} | {' | '.join(cells)} |")
    found = medians(runs)
    if not found:
        return "\n".join(lines)
    with_ranges = bool(runs[0].ranges)
    range_title = " at up to 5 % faster or slower |" if with_ranges else ""
    lines += [
        "",
        f"| `shared` is so many times better | against | figure | measured | simulated | error |{range_title}",
        f"|---|---|---|---|---|---|{'---|' * with_ranges}",
    ]
    for (title, against, figure), values in found.items():
        one, two = (values[side] for side in SIDES)
        shown = f" {values['least']:.2f} to {values['most']:.2f} |" if with_ranges else ""
        lines.append(
            f"| {title} | {against} | {FIGURES[figure]} | {one:.2f} | {two:.2f} | {two / one - 1:+.0%} |{shown}"
        )
    return "\n".join(lines)


def _cell(runs: Sequence[Compared], name: str) -> str:
    one, two = (statistics.median(getattr(run, side)[name] for run in runs) for side in SIDES)
    bounds = {side for run in runs for side in run.at_least} if name == OF_SESSIONS else set()
    if bounds:
        return ", ".join(
            f"{'>= ' * (side in bounds)}{value:.3g}" for side, value in zip(SIDES, (one, two), strict=True)
        )
    return f"{one:.3g}, {two:.3g} ({two / one - 1:+.0%})" if one else "-"


def medians(runs: Sequence[Compared]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Of each run, other system and figure, what `ratios` knows of the ratio; medians over repeats."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for ratio in ratios(runs):
        found.setdefault((ratio["run"], ratio["against"], ratio["figure"]), []).append(ratio)
    return {
        cell: {name: statistics.median(each[name] for each in repeats) for name in _VALUES if name in repeats[0]}
        for cell, repeats in found.items()
    }


def ratios(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """How many times better `shared` is than each other system on the same sessions, where neither is only a bound; if
    ranges are known also how many times at least and at most, with a machine that was not as fast in both runs."""
    ours = {(run.title, run.repeat): run for run in runs if run.system == "shared"}
    found = []
    for other in runs:
        shared = ours.get((other.title, other.repeat))
        if shared is None or other is shared:
            continue
        for figure, more_is_better in RATIOS.items():
            if figure == OF_SESSIONS and (shared.at_least or other.at_least):
                continue
            better, worse = (shared, other) if more_is_better else (other, shared)
            pairs = [(getattr(better, side)[figure], getattr(worse, side)[figure]) for side in SIDES]
            if better.ranges and worse.ranges:
                (least, most), (worse_least, worse_most) = better.ranges[figure], worse.ranges[figure]
                pairs += [(least, worse_most), (most, worse_least)]
            if all(one and two for one, two in pairs):
                where = {"run": other.title, "repeat": other.repeat, "against": other.system, "figure": figure}
                values = [one / two for one, two in pairs]
                found.append({**where, **dict(zip(_VALUES, values, strict=False))})
    return found


def table_of_changes(as_it_was: Sequence[Compared], changed: Mapping[str, Sequence[Compared]]) -> str:
    """How many times better `shared` is than each other system, and in brackets what both have: measured, simulated and
    simulated with every change; medians over repeats. `changed` is by title, of the same runs."""
    shown = [("as measured", as_it_was, "measured"), ("as simulated", as_it_was, "simulated")]
    shown += [(title, runs, "simulated") for title, runs in changed.items()]
    lines = [
        f"| workload, load | against | | {' | '.join(FIGURES[name] for name in RATIOS)} | {FIGURES[_HITS]} |",
        f"|---|---|---|{'---|' * len(RATIOS)}---|",
    ]
    for title, against in dict.fromkeys((run.title, run.system) for run in as_it_was):
        for name, runs, side in shown:
            if pairs := _beside_shared(runs, title, against):
                cells = [title, against, name, *(_times(pairs, figure, side) for figure in RATIOS)]
                cells.append(", ".join(f"{value:.3g}" for value in _both(pairs, _HITS, side)))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _beside_shared(runs: Sequence[Compared], title: str, against: str) -> list[tuple[Compared, Compared]]:
    """Runs of `shared`, each with that of the other system on the same sessions."""
    within = [run for run in runs if run.title == title]
    others = {run.repeat: run for run in within if run.system == against != "shared"}
    return [(run, others[run.repeat]) for run in within if run.system == "shared" and run.repeat in others]


def _times(pairs: Sequence[tuple[Compared, Compared]], figure: str, side: str) -> str:
    values = ", ".join(f"{value:.3g}" for value in _both(pairs, figure, side))
    if figure == OF_SESSIONS and any(side in run.at_least for pair in pairs for run in pair):
        return f"- ({values}, or longer)"
    found = [(getattr(shared, side)[figure], getattr(other, side)[figure]) for shared, other in pairs]
    if not all(one and two for one, two in found):
        return f"- ({values})"
    times = [one / two if RATIOS[figure] else two / one for one, two in found]
    return f"{statistics.median(times):.2f} ({values})"


def _both(pairs: Sequence[tuple[Compared, Compared]], figure: str, side: str) -> list[float]:
    """What `shared` has, and what the other system has."""
    return [statistics.median(getattr(run, side)[figure] for run in runs) for runs in zip(*pairs, strict=True)]
