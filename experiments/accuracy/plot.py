"""The bar chart beside the table."""

from pathlib import Path

_COLOURS = ("#bbbbbb", "#4477aa", "#ee6677", "#228833")  # told apart by colour-blind readers (Tol's bright scheme)


def draw(families: list[tuple[str, dict[str, float]]], folder: Path) -> None:
    """Writes accuracy.png: for each family, the accuracy of each system by name."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    names = list(families[0][1])
    width = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, _COLOURS, strict=True)):
        places = [family + (number - (len(names) - 1) / 2) * width for family in range(len(families))]
        bars = axes.bar(places, [100 * accuracy[name] for _, accuracy in families], width, label=name, color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(families)), [family for family, _ in families])
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    figure.savefig(folder / "accuracy.png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)
