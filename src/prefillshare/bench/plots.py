"""Figures against load, one line a system."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefillshare.bench.figures import Figures, size_of
from prefillshare.bench.systems import SYSTEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = ("sessions a minute", "session s p95", "ttft s p95", "prefix hit ratio")
LABELS = {"closed": "sessions at a time", "poisson": "sessions a second"}


def plot_loads(runs: Sequence[Figures], folder: Path) -> list[Path]:
    """A picture for every workload, number of models and kind of load: four figures against the load.

    Medians over the repeats; bars show their range.
    """
    from matplotlib.figure import Figure

    files = []
    kinds = dict.fromkeys((run.workload, run.models, run.load.partition(":")[0]) for run in runs)
    for workload, models, kind in kinds:
        shown = [run for run in runs if (run.workload, run.models) == (workload, models) and run.load.startswith(kind)]
        figure = Figure(figsize=(12, 3.2), dpi=120, layout="constrained")
        for axes, name in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            draw(axes, shown, name)
            axes.set_xlabel(LABELS[kind])
            axes.set_title(name)
        figure.axes[0].legend()
        figure.suptitle(f"{workload}, {models} models")
        slug = "".join(sign if sign.isalnum() else "-" for sign in workload)
        files.append(folder / f"{slug}-m{models}-{kind}.png")
        figure.savefig(files[-1], format="png")
    return files


def draw(axes: "Axes", runs: Sequence[Figures], name: str) -> None:
    """A line for every system, with the range of its repeats; a sign where it is known only to be so much or more."""
    for system in SYSTEMS:
        points = _points(runs, system, name)
        if not points:
            continue
        loads, middle, below, above = zip(*points, strict=True)
        line = axes.errorbar(loads, middle, yerr=[below, above], marker="o", capsize=3, label=system)
        for load, value in zip(loads, middle, strict=True):
            if any(name in run.at_least for run in runs if run.system == system and size_of(run.load) == load):
                colour = line.lines[0].get_color()
                axes.annotate("≥", (load, value), xytext=(6, -4), textcoords="offset points", color=colour)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _points(runs: Sequence[Figures], system: str, name: str) -> list[tuple[float, float, float, float]]:
    """Load, median, and how far the range of the repeats goes below and above it."""
    by_load: dict[float, list[float]] = {}
    for run in runs:
        value = run.values.get(name)
        if run.system == system and value is not None:
            by_load.setdefault(size_of(run.load), []).append(value)
    middles = {load: statistics.median(values) for load, values in by_load.items()}
    return [
        (load, middles[load], middles[load] - min(by_load[load]), max(by_load[load]) - middles[load])
        for load in sorted(by_load)
    ]
