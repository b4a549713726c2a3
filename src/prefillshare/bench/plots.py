"""Figures against load, one line a system."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefillshare.bench.cells import LABELS, by_load, by_panel, by_system, in_figures, size_of
from prefillshare.bench.figures import Figures
from prefillshare.bench.systems import SYSTEMS
from prefillshare.errors import UserError
from prefillshare.extras import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CLOSED = ("sessions a minute", "session s p95", "ttft s p95", "prefix hit ratio")
_OPEN = ("kept up", *_CLOSED[1:])  # how many sessions there are a minute is the load itself


def plot_loads(runs: Sequence[Figures], folder: Path) -> list[Path]:
    """A picture for every workload, number of models and kind of load: four figures against the load.

    Medians over the repeats; bars show their range.

    Raises:
        UserError: matplotlib is not installed.
    """
    if why := missing("matplotlib", "bench"):
        raise UserError(f"the report has plots: {why}")
    from matplotlib.figure import Figure

    files = []
    for panel, shown in by_panel(runs).items():
        names = _OPEN if panel.is_open else _CLOSED
        figure = Figure(figsize=(12, 3.2), dpi=120, layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
            draw(axes, shown, name)
            axes.set_xlabel(LABELS[panel.kind])
            axes.set_title(name)
        figure.axes[0].legend()
        figure.suptitle(f"{panel.workload}, {panel.models} models")
        slug = "".join(sign if sign.isalnum() else "-" for sign in panel.workload)
        files.append(folder / f"{slug}-m{panel.models}-{panel.kind}.png")
        figure.savefig(files[-1], format="png")
    return files


def draw(axes: "Axes", runs: Sequence[Figures], name: str) -> None:
    """A line for every system, or a bar where there is one load, with the range of its repeats; a sign where it is
    known only to be so much or more. A system has the same colour everywhere."""
    is_one_load = len(by_load(runs)) == 1
    systems = by_system(runs)
    for place, (system, within) in enumerate(systems.items()):
        points = _points(within, name)
        if not points:
            continue
        loads, middle, below, above, bounded = zip(*points, strict=True)
        colour = f"C{SYSTEMS.index(system)}"
        if is_one_load:
            loads = (place,)
            axes.bar(loads, middle, yerr=[below, above], capsize=3, label=system, color=colour)
        else:
            axes.errorbar(loads, middle, yerr=[below, above], marker="o", capsize=3, label=system, color=colour)
        for load, value, is_bound in zip(loads, middle, bounded, strict=True):
            if is_bound:
                axes.annotate("≥", (load, value), xytext=(0, 3), textcoords="offset points", ha="center")
    if is_one_load:
        axes.set_xticks([len(systems) / 2 - 0.5], [in_figures(runs[0].load)])
        axes.set_xlim(-0.6, len(systems) - 0.4)
    axes.margins(y=0.1)  # room for the sign
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _points(runs: Sequence[Figures], name: str) -> list[tuple[float, float, float, float, bool]]:
    """Of one system: load, median, how far the range of the repeats goes below and above it, whether it is a bound."""
    points = []
    for load, within in by_load(runs).items():
        values = [value for run in within if (value := run.values.get(name)) is not None]
        if values:
            middle, bounded = statistics.median(values), any(name in run.at_least for run in within)
            points.append((size_of(load), middle, middle - min(values), max(values) - middle, bounded))
    return points
