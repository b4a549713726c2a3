"""What `shared` is worth on every machine: a row each, and the ranges of all."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from os.path import relpath
from pathlib import Path

from experiments.bench import places
from experiments.bench.machines import MACHINES, machines
from experiments.bench.tables import title
from experiments.section import write_section
from prefillshare.bench.cells import Panel, by_load, by_panel, by_system, in_figures
from prefillshare.bench.figures import Figures, Slo, read_runs
from prefillshare.bench.report import arrived, loads_kept_up, ratio, ratios
from prefillshare.bench.systems import SystemName

GLANCE_START = "<!-- table: python -m experiments.bench glance -->"
BASELINES: Mapping[SystemName, str] = {"per-model": "`per-model`", "colocated": "ordinary vLLMs"}
_BETTER = {"sessions a minute": "throughput", "session s p95": "p95"}
_COLUMNS = len(BASELINES) * len(_BETTER)


def write_glances() -> None:
    """Into the pages that have a place for it."""
    for page, table in GLANCES.items():
        if page.exists() and GLANCE_START in page.read_text():
            write_section(page, GLANCE_START, table(page))


def glance(page: Path) -> str:
    """A row a machine and workload, at the highest load at which `shared` stands beside a baseline; of open loops, of
    those that it kept up with."""
    lines = [f"| machine | sessions | {_head()} | details |", f"|---|---|{'---|' * _COLUMNS}---|"]
    for folder, (machine, anchor) in MACHINES.items():
        where = f"[tables]({relpath(places.PAGES[1], page.parent)}#{anchor})"
        for name, panel, load, within in _compared(folder):
            size = f"{arrived(within)} arriving a minute" if panel.is_open else f"{in_figures(load)} at a time"
            cells = [text for baseline in BASELINES for text in _worth(panel, within, baseline)]
            lines.append(f"| {' | '.join([machine, f'{name}, {size}', *cells, where])} |")
    return "\n".join(lines)


def ranges(_: Path) -> str:
    """A row a workload, closed loops of four models alone: the lowest and the highest of all machines and repeats, each
    at the highest load at which `shared` stands beside the baseline."""
    loads: dict[str, set[str]] = defaultdict(set)
    found: dict[tuple[str, SystemName, str], list[tuple[list[float], bool]]] = defaultdict(list)
    for folder in MACHINES:
        for name, panel, load, within in _compared(folder, models=4):
            if not panel.is_open:
                loads[name].add(in_figures(load))
                for baseline in BASELINES:
                    for figure in _BETTER:
                        found[name, baseline, figure].append(ratios(within, "shared", baseline, figure))
    lines = [f"| sessions | at a time | {_head()} |", f"|---|---|{'---|' * _COLUMNS}"]
    for name, sizes in loads.items():
        cells = [_range(found[name, baseline, figure]) for baseline in BASELINES for figure in _BETTER]
        lines.append(f"| {name} | {', '.join(sorted(sizes, key=float))} | {' | '.join(cells)} |")
    return "\n".join(lines)


# What is written on which page.
GLANCES: Mapping[Path, Callable[[Path], str]] = {
    places.ROOT / "README.md": ranges,
    places.ROOT / "docs" / "bench.md": glance,
    places.ROOT / "docs" / "bench-results.md": machines,
}


def _head() -> str:
    return " | ".join(f"against {each}: {name}" for each in BASELINES.values() for name in _BETTER.values())


def _compared(folder: str, models: int | None = None) -> Iterator[tuple[str, Panel, str, list[Figures]]]:
    """The rows of one machine: the workload's name, where it is shown, its load, and the runs. With `models`, of so
    many alone."""
    runs = [run for run in read_runs(places.PUBLISHED.with_name(folder), Slo()) if models in (None, run.models)]
    for panel, shown in by_panel(runs).items():
        for load, within in _highest_beside_baselines(panel, shown).items():
            yield title(panel, runs), panel, load, within


def _highest_beside_baselines(panel: Panel, runs: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Of each baseline, the highest load; one row where it is the same."""
    loads = by_load(runs)
    kept_up = loads_kept_up(by_system(runs).get("shared", [])) if panel.is_open else []
    found = {}
    for baseline in BASELINES:
        both = [load for load, within in loads.items() if {"shared", baseline} <= set(by_system(within))]
        if usable := [load for load in both if load in kept_up] or both:
            found[usable[-1]] = loads[usable[-1]]
    return {load: within for load, within in loads.items() if load in found}


def _worth(panel: Panel, runs: Sequence[Figures], baseline: SystemName) -> list[str]:
    """How many times better `shared` is in throughput and in p95; an open loop's throughput is its load."""
    return [
        "-" if panel.is_open and name == "sessions a minute" else ratio(runs, "shared", baseline, name) or "-"
        for name in _BETTER
    ]


def _range(found: Sequence[tuple[list[float], bool]]) -> str:
    """Of bounds nobody knows the highest."""
    values = [value for several, _ in found for value in several]
    if not values:
        return "-"
    low, high = (f"{value:.2f}" if value < 1 else f"{value:.1f}" for value in (min(values), max(values)))
    if any(bounded for _, bounded in found):
        return f">= {low}"
    return low if low == high else f"{low} to {high}"
