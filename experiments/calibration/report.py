"""What is shown of predicted runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.calibration.runs import FIGURES, OF_SESSIONS, SIDES, Compared
from prefillshare.simulate.calibrate import Pace

_VALUES = (*SIDES, "least", "most")  # of a ratio
RATIOS = {OF_SESSIONS: False, "calls_per_s": True}  # of `shared` to other systems; whether more is better
_GOAL = 0.15  # by which a predicted ratio may be off


def table(runs: Sequence[Compared]) -> str:
    """Each cell: measured, simulated, and the error of the latter; medians over repeats. Then the systems' ratios."""
    lines = [f"| workload, load | system | {' | '.join(FIGURES.values())} |", f"|---|---|{'---|' * len(FIGURES)}"]
    for title, system in dict.fromkeys((run.title, run.system) for run in runs):
        within = [run for run in runs if (run.title, run.system) == (title, system)]
        cells = []
        for name in FIGURES:
            cells.append(_cell(within, name))
        lines.append(f"| {title} | {system} | {' | '.join(cells)} |")
    found = _medians(runs)
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


def _medians(runs: Sequence[Compared]) -> dict[tuple[str, str, str], dict[str, float]]:
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


def what_the_fit_is_worth(as_measured: Sequence[Compared], fitted: Sequence[Compared], pace: Pace) -> str:
    """Of the runs that were not fitted to, simulated with costs as they were measured and at the fitted pace, both with
    ranges."""
    both = (as_measured, fitted)
    beside = f", and a step {pace.beside:.2f} times more beside work on another core" if pace.beside > 1 else ""
    lines = [
        f"Fitted: everything takes {pace.factor:.2f} times as long as when costs were measured{beside}.",
        "",
        "| of the runs that were not fitted to | costs as measured | fitted |",
        "|---|---|---|",
    ]
    for figure in RATIOS:
        cells = [_mean_error(runs, figure) for runs in both]
        lines.append(f"| {FIGURES[figure]}, mean error of a run | {' | '.join(cells)} |")
    medians = [_medians(runs) for runs in both]
    for against in dict.fromkeys(system for _, system, _ in medians[0]):
        of_both = [[values for (_, system, _), values in each.items() if system == against] for each in medians]
        cells = [_ratios_within(each) for each in of_both]
        lines.append(f"| ratios of `shared` to `{against}` within {_GOAL:.0%}; the worst | {' | '.join(cells)} |")
        cells = [_ratios_in_range(each) for each in of_both]
        lines.append(f"| and within what a machine 5 % faster or slower in either run makes | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_error(runs: Sequence[Compared], figure: str) -> str:
    known = [run for run in runs if figure != OF_SESSIONS or not run.at_least]
    errors = [run.simulated[figure] / run.measured[figure] - 1 for run in known]
    return f"{statistics.mean(map(abs, errors)):.1%} ({min(errors):+.0%} to {max(errors):+.0%})"


def _ratios_within(medians: Sequence[Mapping[str, float]]) -> str:
    errors = [values["simulated"] / values["measured"] - 1 for values in medians]
    within = sum(abs(error) <= _GOAL for error in errors)
    return f"{within} of {len(errors)}; {max(errors, key=abs):+.0%}"


def _ratios_in_range(medians: Sequence[Mapping[str, float]]) -> str:
    return f"{sum(each['least'] <= each['measured'] <= each['most'] for each in medians)} of {len(medians)}"
