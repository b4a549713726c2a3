"""A workload's tables: one on the page of results, all figures in a file beside the records."""

from collections.abc import Mapping, Sequence

from prefillshare.bench.cells import LABELS, Panel, by_load, by_panel, by_system, in_figures
from prefillshare.bench.figures import Figures
from prefillshare.bench.report import against, cell, kept_up_table, minutes_apart, ratio

# Of the table on the page. How many sessions an open loop plays a minute is its load, so it is left out there.
PAGE = {
    "sessions a minute": "sessions a minute",
    "arrivals a minute": "arrivals a minute, as drawn",
    "kept up": "kept up",
    "goodput, calls a minute": "goodput, calls a minute",
    "session s p95": "session p95, s",
    "ttft s p95": "first token p95, s",
    "tpot s p95": "s a token, p95",
    "prefix hit ratio": "prefix hit ratio",
}
# Of the file: how much is done, how long calls take, and what that costs. Those that say nothing about a kind of load
# are left out.
RATES = {
    "sessions a minute": "sessions a minute",
    "arrivals a minute": "arrivals a minute, as drawn",
    "kept up": "kept up",
    "goodput, calls a minute": "goodput, calls a minute",
    "session s p95": "session p95, s",
    "of the possible speed": "of the possible speed",
    "unfinished sessions": "cut off",
}
TIMES = {
    "ttft s p50": "first token p50, s",
    "ttft s p95": "p95",
    "ttft s p99": "p99",
    "tpot s": "s a token, mean",
    "tpot s p50": "p50",
    "tpot s p95": "p95",
    "tpot s p99": "p99",
}
WORK = {
    "prefix hit ratio": "prefix hit ratio",
    "hit ratio at best": "at best",
    "prefill tokens a session": "prefill tokens a session",
    "KV moved a session, MB": "KV moved a session, MB",
    "peak KV, MB": "peak KV, MB",
}
_CUT = "unfinished sessions"
RATIOS = {
    "sessions a minute": "sessions a minute",
    "goodput, calls a minute": "goodput",
    "session s p95": "session p95",
    "prefill tokens a session": "prefill tokens",
}


def tables(runs: Sequence[Figures]) -> str:
    """Of each workload and kind of load, a table and how many times better ours are; sessions that were cut off, where
    any was."""
    parts = []
    for panel, shown in by_panel(runs).items():
        columns = {name: text for name, text in PAGE.items() if not (panel.is_open and name == "sessions a minute")}
        if any(each.values[_CUT] for each in shown):
            columns[_CUT] = RATES[_CUT]
        parts += [f"**{title(panel, runs)}**", _systems(panel, shown, columns, cores=True), _ratios(panel, shown)]
    return "\n\n".join(part for part in parts if part)


def all_tables(runs: Sequence[Figures]) -> str:
    """Of each workload and kind of load: rates, times, work, and how many times better ours are."""
    parts = []
    if kept := kept_up_table(runs):
        parts += ["## The highest load that each system kept up with", kept]
    for panel, shown in by_panel(runs).items():
        parts += [f"## {title(panel, runs)}", *(_systems(panel, shown, columns) for columns in (RATES, TIMES))]
        parts += [_systems(panel, shown, WORK, cores=True), _ratios(panel, shown)]
    return "\n\n".join(part for part in parts if part)


def title(panel: Panel, runs: Sequence[Figures]) -> str:
    """Without the number of models where all runs have the same."""
    several = len({each.models for each in runs}) > 1
    models = f", {panel.models} model{'s' * (panel.models > 1)}" if several else ""
    return f"{panel.workload}{models}{', open loop' if panel.is_open else ''}{panel.how}"


def _systems(panel: Panel, runs: Sequence[Figures], columns: Mapping[str, str], *, cores: bool = False) -> str:
    """With `cores`, also how busy these were."""
    shown = [name for name in columns if any(each.values.get(name) is not None for each in runs)]
    head = [LABELS[panel.kind], "system", *(columns[name] for name in shown), *["busy cores"] * cores]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for load, of_load in by_load(runs).items():
        for system, within in by_system(of_load).items():
            cells = [cell(within, name) for name in shown] + [_busy(within)] * cores
            lines.append(f"| {in_figures(load)} | {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _busy(runs: Sequence[Figures]) -> str:
    """Of each core that workers have, how much of it they used."""
    names = dict.fromkeys(name for each in runs for name in each.values if name.startswith("cpu of core"))
    return ", ".join(cell(runs, name) for name in names)


def _ratios(panel: Panel, runs: Sequence[Figures]) -> str:
    """Also how long after each other the compared runs began, as far as they say."""
    lines = []
    for load, within in by_load(runs).items():
        for ours, other in against(within):
            cells = [ratio(within, ours, other, name) or "-" for name in RATIOS]
            apart = minutes_apart(within, ours, other)
            cells.append("-" if apart is None else f"{apart:.0f}")
            lines.append(f"| {in_figures(load)} | {ours} | {other} | {' | '.join(cells)} |")
    if not lines:
        return ""
    head = f"| {LABELS[panel.kind]} | so many times better is | than | {' | '.join(RATIOS.values())} | minutes apart |"
    return "\n".join([head, f"|---|---|---|{'---|' * len(RATIOS)}---|", *lines])
