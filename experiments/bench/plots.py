"""The plots of the pages."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.bench.tables import title
from prefillshare.bench.cells import by_panel
from prefillshare.bench.figures import Figures
from prefillshare.bench.plots import axis_label, draw
from prefillshare.bench.systems import SYSTEMS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

PLOTS = {
    "overview.png": {"sessions a minute": "sessions a minute", "session s p95": "p95 of a session, s"},
    "details.png": {
        "goodput, calls a minute": "goodput, calls a minute",
        "ttft s p95": "first token p95, s",
        "tpot s p95": "p95 of s a token",
        "KV moved a session, MB": "KV moved a session, MB",
        "peak KV, MB": "peak KV, MB",
    },
}


def plot(runs: Sequence[Figures], file: Path, names: Mapping[str, str]) -> None:
    """A column a workload and kind of load, a row a figure. Of an open loop, where sessions a minute are the load, how
    far it was kept up with stands in their place.

    Args:
        names: of figures, and what the axis calls them.
    """
    from matplotlib.figure import Figure

    panels = by_panel(runs)
    figure = Figure(figsize=(4 * len(panels), 2.8 * len(names)), dpi=100, layout="constrained")
    grid = figure.subplots(len(names), len(panels), squeeze=False)
    for column, (panel, shown) in enumerate(panels.items()):
        for row, (name, label) in enumerate(names.items()):
            axes, is_load = grid[row][column], name == "sessions a minute" and panel.is_open
            draw(axes, shown, "kept up" if is_load else name)
            if not axes.has_data():  # of too few sessions nobody knows what was kept up with
                axes.yaxis.set_visible(False)
                axes.text(0.5, 0.5, "not known", ha="center", transform=axes.transAxes)
            if column == 0 or is_load:
                axes.set_ylabel("kept up" if is_load else label)
        grid[0][column].set_title(title(panel, runs))
        grid[-1][column].set_xlabel(axis_label(panel))
    figure.legend(*_legend(grid.flat), loc="outside upper center", ncols=5)
    figure.savefig(file, format="png")


def _legend(all_axes: Iterable["Axes"]) -> tuple[list["Artist"], list[str]]:
    """One entry a system, as they are always ordered: not every workload was run on all."""
    found: dict[str, Artist] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels: list[str] = [system for system in SYSTEMS if system in found]
    return [found[label] for label in labels], labels
