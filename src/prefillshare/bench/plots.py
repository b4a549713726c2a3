"""Figures against load, and against the number of models; one line a system."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefillshare.bench.cells import (
    LABELS,
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

_CLOSED = ("sessions a minute", "session s p95", "ttft s p95", "prefix hit ratio")
_OPEN = ("kept up", *_CLOSED[1:])  # how many sessions there are a minute is the load itself


def plots(runs: Sequence[Figures], folder: Path) -> list[Path]:
    """A picture for every workload, number of models and kind of load: four figures against the load. Where a load was
    run with several numbers of models, also one against these.

    Medians over the repeats; bars show their range.

    Raises:
        UserError: matplotlib is not installed.
    """
    if why := missing("matplotlib", "bench"):
        raise UserError(f"the report has plots: {why}")
    files = []
    for panel, shown in by_panel(runs).items():
        file = folder / f"{_in_file_names(panel.workload)}-m{panel.models}-{panel.kind}.png"
        _picture(file, shown, _by_size, f"{panel.workload}, {panel.models} models", LABELS[panel.kind])
        files.append(file)
    for (workload, load), shown in of_several_models(runs).items():
        (panel, *_) = by_panel(shown)
        file = folder / f"{_in_file_names(workload)}-{_in_file_names(load)}-models.png"
        _picture(file, shown, by_models, f"{workload}, {in_figures(load)} {LABELS[panel.kind]}", "models")
        files.append(file)
    return files


def _picture(file: Path, runs: Sequence[Figures], along: Axis, title: str, label: str) -> None:
    from matplotlib.figure import Figure

    (panel, *_) = by_panel(runs)
    names = _OPEN if panel.is_open else _CLOSED
    figure = Figure(figsize=(12, 3.2), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
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
    return {size_of(load): within for load, within in by_load(runs).items()}


def draw(axes: "Axes", runs: Sequence[Figures], name: str, along: Axis = _by_size) -> None:
    """A line for every system, or a bar where there is one place on the axis, with the range of its repeats; a sign
    where it is known only to be so much or more. A system has the same colour everywhere."""
    places, systems = along(runs), by_system(runs)
    for number, (system, within) in enumerate(systems.items()):
        points = _points(along(within), name)
        if not points:
            continue
        at, middle, below, above, bounded = zip(*points, strict=True)
        colour = f"C{SYSTEMS.index(system)}"
        if len(places) == 1:
            at = (number,)
            axes.bar(at, middle, yerr=[below, above], capsize=3, label=system, color=colour)
        else:
            axes.errorbar(at, middle, yerr=[below, above], marker="o", capsize=3, label=system, color=colour)
        for place, value, is_bound in zip(at, middle, bounded, strict=True):
            if is_bound:
                axes.annotate("≥", (place, value), xytext=(0, 3), textcoords="offset points", ha="center")
    if len(places) == 1:
        axes.set_xticks([len(systems) / 2 - 0.5], [f"{round(next(iter(places)), 2):g}"])
        axes.set_xlim(-0.6, len(systems) - 0.4)
    elif along is by_models:
        axes.set_xticks(list(places))  # there are no halves
    axes.margins(y=0.1)  # room for the sign
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _points(places: Places, name: str) -> list[tuple[float, float, float, float, bool]]:
    """Of one system: place on the axis, median, how far the range of the repeats goes below and above it, whether it is
    a bound."""
    points = []
    for place, within in places.items():
        values = [value for run in within if (value := run.values.get(name)) is not None]
        if values:
            middle, bounded = statistics.median(values), any(name in run.at_least for run in within)
            points.append((place, middle, middle - min(values), max(values) - middle, bounded))
    return points
