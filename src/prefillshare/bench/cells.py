"""Which runs are compared with each other, in the order in which they are shown, and what their loads are called."""

import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from prefillshare.bench.figures import Figures
from prefillshare.bench.systems import SYSTEMS, SystemName
from prefillshare.workloads.arrivals import Closed, Poisson, parse_arrivals

Key = TypeVar("Key", bound=Hashable)

ARRIVING = "sessions arriving a minute"
# Of an axis, by kind of load.
LABELS = {"closed": "sessions at a time", "poisson": ARRIVING, "trace": "times as fast as recorded"}


class Panel(NamedTuple):
    """What is shown against one axis: a closed loop's loads and an open one's are not of one kind."""

    workload: str
    models: int
    kind: str

    @property
    def is_open(self) -> bool:
        return self.kind != "closed"

    @property
    def how(self) -> str:
        """Follows the workload's name where open loops of two kinds stand side by side."""
        return ", as recorded" if self.kind == "trace" else ""


def by_panel(runs: Sequence[Figures]) -> dict[Panel, list[Figures]]:
    """Workload by workload; of one, closed loops come first."""
    groups = _grouped(runs, lambda run: Panel(run.workload, run.models, run.load.partition(":")[0]))
    order = list(dict.fromkeys((panel.workload, panel.models) for panel in groups))
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][:2]), item[0].is_open)))


def by_load(runs: Sequence[Figures]) -> dict[str, list[Figures]]:
    """From the lowest load to the highest; of one panel."""
    return _grouped(sorted(runs, key=lambda run: size_of(run.load)), lambda run: run.load)


def by_models(runs: Sequence[Figures]) -> dict[int, list[Figures]]:
    """From the fewest models to the most; of one workload and load."""
    return _grouped(sorted(runs, key=lambda run: run.models), lambda run: run.models)


def of_several_models(runs: Sequence[Figures]) -> dict[tuple[str, str], list[Figures]]:
    """By workload and load, those that were run with several numbers of models."""
    groups = _grouped(runs, lambda run: (run.workload, run.load))
    return {cell: within for cell, within in groups.items() if len(by_models(within)) > 1}


def by_system(runs: Sequence[Figures]) -> dict[SystemName, list[Figures]]:
    """The systems that were run, in the order in which they are always shown."""
    found = {system: [run for run in runs if run.system == system] for system in SYSTEMS}
    return {system: within for system, within in found.items() if within}


def size_of(load: str) -> float:
    """Sessions at a time, or arriving a minute, or how many times as fast as they were recorded."""
    arrivals = parse_arrivals(load)
    if isinstance(arrivals, Closed):
        return arrivals.concurrent
    return 60 * arrivals.rate if isinstance(arrivals, Poisson) else arrivals.speed


def arrivals_of(runs: Sequence[Figures]) -> float | None:
    """Sessions a minute, as they were drawn for an open loop's load: in the middle of the repeats, each of which has
    the same for all systems. None if no run says it."""
    drawn = {run.repeat: value for run in runs if (value := run.values["arrivals a minute"]) is not None}
    return statistics.median(drawn.values()) if drawn else None


def arrived(runs: Sequence[Figures]) -> str:
    """`arrivals_of` in figures; what was asked for where it is not known."""
    drawn = arrivals_of(runs)
    return in_figures(runs[0].load) if drawn is None else f"{drawn:.3g}"


def in_figures(load: str) -> str:
    """Its size, for a table whose head names the kind."""
    return f"{round(size_of(load), 2):g}"


def _grouped(runs: Sequence[Figures], key: Callable[[Figures], Key]) -> dict[Key, list[Figures]]:
    groups: dict[Key, list[Figures]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups
