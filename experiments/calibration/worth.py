"""How far predictions are off: those of one folder of runs, and of all that are published."""

import statistics
from collections.abc import Mapping, Sequence

from experiments.calibration.report import RATIOS, medians
from experiments.calibration.runs import FIGURES, OF_SESSIONS, Compared
from prefillshare.simulate.calibrate import Pace

AS_MEASURED = "costs as measured"
_GOAL = 0.15  # by which a predicted ratio may be off
_BASELINES = ("per-model", "colocated")


def what_the_fit_is_worth(as_measured: Sequence[Compared], fitted: Sequence[Compared], pace: Pace) -> str:
    """Of the runs that were not fitted to, simulated with costs as they were measured and at the fitted pace, both with
    ranges."""
    both = (as_measured, fitted)
    beside = f", and a step {pace.beside:.2f} times more beside work on another core" if pace.beside > 1 else ""
    lines = [
        f"Fitted: everything takes {pace.factor:.2f} times as long as when costs were measured{beside}.",
        "",
        f"| of the runs that were not fitted to | {AS_MEASURED} | fitted |",
        "|---|---|---|",
    ]
    for figure in RATIOS:
        cells = [_mean_error(runs, figure) for runs in both]
        lines.append(f"| {FIGURES[figure]}, mean error of a run | {' | '.join(cells)} |")
    of_both = [medians(runs) for runs in both]
    for against in dict.fromkeys(system for _, system, _ in of_both[0]):
        cells = [_ratios_within(_of(each, against)) for each in of_both]
        lines.append(f"| ratios of `shared` to `{against}` within {_GOAL:.0%}; the worst | {' | '.join(cells)} |")
        cells = [_ratios_in_range(_of(each, against)) for each in of_both]
        lines.append(f"| and within what a machine 5 % faster or slower in either run makes | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(published: Mapping[str, Mapping[str, Sequence[Compared]]]) -> str:
    """A row for each folder and way to predict its runs."""
    figures = " | ".join(f"{FIGURES[figure]}, mean error of a run" for figure in RATIOS)
    ratios = " | ".join(f"ratios of `shared` to `{against}` within {_GOAL:.0%}; the worst" for against in _BASELINES)
    lines = [
        f"| runs | simulated with | {figures} | {ratios} |",
        f"|---|---|{'---|' * (len(RATIOS) + len(_BASELINES))}",
    ]
    for where, ways in published.items():
        for way, runs in ways.items():
            cells = [where, way, *(_mean_error(runs, figure) for figure in RATIOS)]
            cells += [_ratios_within(_of(medians(runs), against)) for against in _BASELINES]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of(found: Mapping[tuple[str, str, str], Mapping[str, float]], against: str) -> list[Mapping[str, float]]:
    return [values for (_, system, _), values in found.items() if system == against]


def _mean_error(runs: Sequence[Compared], figure: str) -> str:
    known = [run for run in runs if figure != OF_SESSIONS or not run.at_least]
    if not known:
        return "-"
    errors = [run.simulated[figure] / run.measured[figure] - 1 for run in known]
    return f"{statistics.mean(map(abs, errors)):.1%} ({min(errors):+.0%} to {max(errors):+.0%})"


def _ratios_within(found: Sequence[Mapping[str, float]]) -> str:
    if not found:
        return "-"
    errors = [values["simulated"] / values["measured"] - 1 for values in found]
    within = sum(abs(error) <= _GOAL for error in errors)
    return f"{within} of {len(errors)}; {max(errors, key=abs):+.0%}"


def _ratios_in_range(found: Sequence[Mapping[str, float]]) -> str:
    return f"{sum(each['least'] <= each['measured'] <= each['most'] for each in found)} of {len(found)}"
