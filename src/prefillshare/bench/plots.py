"""Figures against load, and against the number of models; one line a system."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefillshare.bench.cells import (
    LABELS,
    Panel,
    arrivals_of,
    arrived,
    by_load,
    by_models,
    by_panel,
    by_system,
    in_figures,
    of_several_models,
    size_of,
)
from prefillshare.bench.figures import Figures
from prefillshare.bench.systems import SYSTEMS
from prefillshare.errors import UserError
from prefillshare.extras import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Runs by their place on an axis, in its order, and what groups them so.
Places = Mapping[float, list[Figures]] | Mapping[int, list[Figures]]
Axis = Callable[[Sequence[Figures]], Places]

_COLUMNS = 4
_CLOSED = (
    "sessions a minute",
    "goodput, calls a minute",
    "session s p95",
    "ttft s p95",
    "tpot s p95",
    "prefix hit ratio",
    "KV moved a session, MB",
    "peak KV, MB",
)
_OPEN = ("kept up", *_CLOSED[1:])  # how many sessions there are a minute is the load itself


def plots(runs: Sequence[Figures], folder: Path) -> list[Path]:
    """A picture for every workload, number of models and kind of load: eight figures against the load. Where a load was
    run with several numbers of models, also one against these.

    Medians over the repeats; bars show their range, where there are several.

    Raises:
        UserError: matplotlib is not installed.
    """
    if why := missing("matplotlib", "bench"):
        raise UserError(f"the report has plots: {why}")
    files = []
    for panel, shown in by_panel(runs).items():
        file = folder / f"{_in_file_names(panel.workload)}-m{panel.models}-{panel.kind}.png"
        _picture(file, shown, _by_size, f"{panel.workload}, {panel.models} models", axis_label(panel))
        files.append(file)
    for (workload, load), shown in of_several_models(runs).items():
        (panel, *_) = by_panel(shown)
        size = arrived(shown) if panel.kind == "poisson" else in_figures(load)
        file = folder / f"{_in_file_names(workload)}-{_in_file_names(load)}-models.png"
        _picture(file, shown, by_models, f"{workload}, {size} {axis_label(panel)}", "models")
        files.append(file)
    return files


def axis_label(panel: Panel) -> str:
    """Arrivals stand where they were drawn, as in tables, not where they were asked for."""
    return LABELS[panel.kind] + (", as drawn" if panel.kind == "poisson" else "")


def _picture(file: Path, runs: Sequence[Figures], along: Axis, title: str, label: str) -> None:
    from matplotlib.figure import Figure

    (panel, *_) = by_panel(runs)
    names = _OPEN if panel.is_open else _CLOSED
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(12, 2.9 * rows), dpi=120, layout="constrained")
    grid = figure.subplots(rows, _COLUMNS)
    for axes, name in zip(grid.flat, names, strict=True):
        draw(axes, runs, name, along)
        axes.set_xlabel(label)
        axes.set_title(name)
    if drawn := [axes for axes in figure.axes if axes.get_legend_handles_labels()[0]]:
        drawn[0].legend()
    figure.suptitle(title)
    figure.savefig(file, format="png")


def _in_file_names(text: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in text)


def _by_size(runs: Sequence[Figures]) -> dict[float, list[Figures]]:
    return {_place(load, within): within for load, within in by_load(runs).items()}


def _place(load: str, runs: Sequence[Figures]) -> float:
    drawn = arrivals_of(runs)
    return drawn if drawn is not None and load.startswith("poisson") else size_of(load)


class _Point(NamedTuple):
    """Of one system: its place on the axis, the median, the lowest and the highest of the repeats if there are several,
    and whether the median is only known to be so much or more."""

    at: float
    middle: float
    ends: tuple[float, float] | None
    is_bound: bool


def draw(axes: "Axes", runs: Sequence[Figures], name: str, along: Axis = _by_size) -> None:
    """A line for every system, or a bar where there is one place on the axis, with the range of its repeats if there
    are several; a sign where it is known only to be so much or more. A system has the same colour everywhere."""
    places, systems = along(runs), list(by_system(runs))
    for number, system in enumerate(systems):
        points = _points(places, system, name)
        if not points:
            continue
        colour = f"C{SYSTEMS.index(system)}"
        if len(places) == 1:
            points = [point._replace(at=number) for point in points]
            axes.bar([number], [points[0].middle], label=system, color=colour)
        else:
            at, middle = [point.at for point in points], [point.middle for point in points]
            axes.plot(at, middle, marker="o", label=system, color=colour)
        for point in points:
            _mark(axes, point, "black" if len(places) == 1 else colour)
    if len(places) == 1:
        axes.set_xticks([len(systems) / 2 - 0.5], [f"{next(iter(places)):.3g}"])
        axes.set_xlim(-0.6, len(systems) - 0.4)
    elif along is by_models:
        axes.set_xticks(list(places))  # there are no halves
    axes.margins(y=0.1)  # room for the sign
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _mark(axes: "Axes", point: _Point, colour: str) -> None:
    """The range of the repeats, and the sign of what is only a bound."""
    if point.ends is not None:
        below, above = point.middle - point.ends[0], point.ends[1] - point.middle
        axes.errorbar([point.at], [point.middle], yerr=[[below], [above]], fmt="none", capsize=3, ecolor=colour)
    if point.is_bound:
        axes.annotate("≥", (point.at, point.middle), xytext=(0, 3), textcoords="offset points", ha="center")


def _points(places: Places, system: str, name: str) -> list[_Point]:
    points = []
    for at, runs in places.items():
        own = [run for run in runs if run.system == system]
        values = [value for run in own if (value := run.values.get(name)) is not None]
        if values:
            ends = (min(values), max(values)) if len(values) > 1 else None
            is_bound = any(name in run.at_least for run in own)
            points.append(_Point(at, statistics.median(values), ends, is_bound))
    return points
