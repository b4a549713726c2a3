"""Latency of answered calls and what became of the others, at each load."""

from collections.abc import Mapping, Sequence
from pathlib import Path

_ANSWERED, _REFUSED = "#4477aa", "#ee6677"  # told apart by colour-blind readers (Tol's bright scheme)


def draw(seconds: Mapping[str, Sequence[float]], rates: Mapping[str, tuple[float, float]], file: Path) -> None:
    """Writes a PNG.

    Args:
        seconds: by phase, how long answered calls took.
        rates: by phase, calls a second that were answered and refused.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for (phase, values), style in zip(seconds.items(), ("-", "--", ":"), strict=False):
        ordered = sorted(values)
        shares = [100 * (place + 1) / len(ordered) for place in range(len(ordered))]
        left.plot(ordered, shares, style, color=_ANSWERED, label=phase)
    left.axhline(95, color="#bbbbbb", linewidth=0.8)
    left.set_xlabel("seconds until the end of the answer")
    left.set_ylabel("answered calls, %")
    left.set_xlim(left=0)
    left.legend(frameon=False, loc="lower right")
    phases = list(rates)
    answered, refused = ([rates[phase][kind] for phase in phases] for kind in (0, 1))
    right.bar(phases, answered, 0.6, label="answered", color=_ANSWERED)
    right.bar(phases, refused, 0.6, bottom=answered, label="refused (429)", color=_REFUSED)
    right.set_ylabel("calls a second")
    right.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
