"""The table of all machines: what `shared` is worth on each."""

from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path

from experiments.bench import places
from experiments.bench.tables import title
from experiments.section import write_section
from prefillshare.bench.cells import Panel, by_load, by_panel, by_system, in_figures
from prefillshare.bench.figures import Figures, Slo, read_runs
from prefillshare.bench.report import arrived, loads_kept_up, ratio
from prefillshare.bench.systems import SystemName

GLANCE_START = "<!-- table: python -m experiments.bench glance -->"
# Folders of results, what they were measured on, and where the page has them.
MACHINES = {
    "bench-limits": ("EPYC, bfloat16", "two-cores-of-an-epyc"),
    "bench": ("Xeon, bfloat16", "two-cores-of-a-xeon-whose-memory-is-slow"),
    "bench-both-cores": ("Xeon, bfloat16, decode workers on both cores", "decode-workers-on-both-cores"),
    "bench-epyc": ("EPYC with faster memory, bfloat16", "on-a-machine-with-faster-memory"),
    "bench-float32": ("AVX2, float32", "on-cores-without-bfloat16-units"),
    "bench-small-steps": ("AVX2, float32, steps of 256 tokens", "ordinary-vllms-with-short-steps"),
    "bench-short-contexts": ("AVX2, float32", "short-contexts-without-bfloat16-units"),
    "bench-repeats": ("AVX2, float32", "react-with-repeats-and-one-ordinary-vllm-with-all-adapters"),
}
# The pages that show machines at a glance, with which of them and whether with open loops. README.md has a table of the
# first of its own; the fourth is of older code.
GLANCES: Mapping[Path, tuple[Sequence[str], bool]] = {
    places.ROOT / "README.md": ([name for name in MACHINES if name not in ("bench-limits", "bench-epyc")], False),
    places.ROOT / "docs" / "bench.md": (list(MACHINES), True),
}
BASELINES: Mapping[SystemName, str] = {"per-model": "`per-model`", "colocated": "ordinary vLLMs"}


def write_glances() -> None:
    """What `shared` is worth on every machine, into the pages that have a place for it."""
    for page in GLANCES:
        if page.exists() and GLANCE_START in page.read_text():
            write_section(page, GLANCE_START, glance(page))


def glance(page: Path) -> str:
    """A row a workload, at the highest load at which `shared` stands beside a baseline; of open loops, of those that it
    kept up with."""
    names = [f"against {each}: {name}" for each in BASELINES.values() for name in ("throughput", "p95")]
    lines = [f"| machine | sessions | {' | '.join(names)} | details |", f"|---|---|{'---|' * len(names)}---|"]
    folders, with_open_loops = GLANCES[page]
    for folder in folders:
        machine, anchor = MACHINES[folder]
        where = f"[tables]({relpath(places.PAGES[1], page.parent)}#{anchor})"
        runs = read_runs(places.PUBLISHED.with_name(folder), Slo())
        for panel, shown in by_panel(runs).items():
            if panel.is_open and not with_open_loops:
                continue
            for load, within in _highest_beside_baselines(panel, shown).items():
                size = f"{arrived(within)} arriving a minute" if panel.is_open else f"{in_figures(load)} at a time"
                cells = [text for baseline in BASELINES for text in _worth(panel, within, baseline)]
                lines.append(f"| {' | '.join([machine, f'{title(panel, runs)}, {size}', *cells, where])} |")
    return "\n".join(lines)


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
    names = ("sessions a minute", "session s p95")
    return [
        "-" if panel.is_open and name == names[0] else ratio(runs, "shared", baseline, name) or "-" for name in names
    ]
