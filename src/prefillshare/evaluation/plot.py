"""The sweep as a picture."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from prefillshare.evaluation.statistics import Interval


def plot_sweep(curves: dict[str, dict[float, Interval]], file: Path) -> None:
    """Accuracy with its intervals against the share of the prompt's KV that is the base's: one line a system."""
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        middle = [point.estimate for point in points.values()]
        below = [point.estimate - point.low for point in points.values()]
        above = [point.high - point.estimate for point in points.values()]
        axes.errorbar(list(points), middle, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.set_xlabel("share of the prompt's KV that comes from the base")
    axes.set_ylabel("accuracy (95 % intervals)")
    axes.set_ylim(-0.02, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png")
