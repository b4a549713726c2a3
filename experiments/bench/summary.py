"""The table of README.md: every workload at its highest load."""

from collections.abc import Sequence

from experiments.bench.tables import PAGE, RATIOS, title
from prefillshare.bench.cells import ARRIVING, by_load, by_panel, by_system, in_figures
from prefillshare.bench.figures import Figures
from prefillshare.bench.report import against, arrived, cell, kept_up_cells, loads_kept_up, ratio
from prefillshare.bench.systems import SystemName

# What a baseline is compared with in the summary, where that is not `shared`: what has adapters with what has them too.
LIKE: dict[SystemName, SystemName] = {"colocated-lora": "shared-lora"}
SUMMARY = ("goodput, calls a minute", "session s p95")


def summary(runs: Sequence[Figures]) -> str:
    """The systems' figures at each workload's highest load of a kind, and how many times better ours are. Of open loops
    it is the highest that `shared` kept up with, which the highest of each system is shown beside."""
    systems = list(by_system(runs))
    pairs = [(ours, other) for ours, other in against(runs) if ours == LIKE.get(other, "shared")]
    head = [*systems, *(f"{ours} against {other}" for ours, other in pairs)]
    lines = [f"| | | {' | '.join(head)} |", f"|---|---|{'---|' * len(head)}"]
    for panel, shown in by_panel(runs).items():
        if panel.is_open and (kept := kept_up_cells(shown, systems)):
            cells = kept + [""] * len(pairs)
            lines.append(f"| {title(panel, runs)} | kept up with, {ARRIVING} | {' | '.join(cells)} |")
        loads = by_load(shown)
        kept_up = loads_kept_up(by_system(shown).get("shared", [])) if panel.is_open else []
        load = (kept_up or list(loads))[-1]
        within = loads[load]
        # Repeats that not every system has draw other arrivals; the row before says what `shared` kept up with.
        met = arrived(by_system(within).get("shared", within))
        how = f"{met} arriving a minute" if panel.is_open else f"{in_figures(load)} at a time"
        # How many sessions an open loop plays a minute is its load.
        names = [*["sessions a minute"] * (not panel.is_open), *SUMMARY]
        for name in names:
            cells = [cell(by_system(within).get(system, []), name) for system in systems]
            better = [ratio(within, ours, other, name) if name in RATIOS else None for ours, other in pairs]
            first = f"{title(panel, runs)}, {how}" if name == names[0] else ""
            more = [f"{text} x" if text else "" for text in better]
            lines.append(f"| {first} | {PAGE[name]} | {' | '.join([*cells, *more])} |")
    return "\n".join(lines)
