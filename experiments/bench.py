"""The benchmark's published figures: `python -m experiments.bench short | full | publish`.

    short      one load, two systems, in under 15 minutes on two cores
    full       every family, load and system, three times: hours; goes on where it was stopped
    publish    writes the tables and the plot of README.md and docs/bench.md from the records in docs/results/bench, or
               from those of a folder, which are copied there

The first two make the base when it is missing, measure what work costs here, run, and leave a report in
artifacts/bench/. Timings are worth something on a machine that does nothing else.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.demo.prepare_base import prepare_base
from experiments.section import write_section
from prefillshare.bench.calibrate import calibrate
from prefillshare.bench.costs import FILE
from prefillshare.bench.figures import Figures, Slo, read_runs, size_of
from prefillshare.bench.matrix import FULL, SHORT, Matrix
from prefillshare.bench.plots import LABELS, draw
from prefillshare.bench.report import against, cell, ratio, write_report
from prefillshare.bench.run import run
from prefillshare.bench.systems import SYSTEMS
from prefillshare.errors import UserError

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "results" / "bench"
PAGES = (ROOT / "README.md", ROOT / "docs" / "bench.md")
START = "<!-- table: python -m experiments.bench publish -->"
PLOT = "overview.png"

# Columns of the tables.
SHOWN = {
    "sessions a minute": "sessions a minute",
    "session s p95": "session p95, s",
    "ttft s p95": "first token p95, s",
    "tpot s": "s a token",
    "prefix hit ratio": "prefix hit ratio",
    "prefill tokens a session": "prefill tokens a session",
    "of the possible speed": "of the possible speed",
}
RATIOS = {
    "sessions a minute": "sessions a minute",
    "session s p95": "session p95",
    "prefill tokens a session": "prefill tokens",
}


def measure(matrix: Matrix, output: Path) -> int:
    """Returns the exit code, as `prefillshare bench run` does."""
    console = Console(stderr=True)
    base = prepare_base(ROOT / "artifacts" / "base")
    if not (output / FILE).exists():
        code = calibrate(matrix.machine, base, output, console)
        if code:
            return code
    code = run(matrix, base, output, console)
    if code == 0:
        print("written: " + ", ".join(map(str, write_report(output, Slo()))))
    return code


def publish(results: Path) -> None:
    """Raises UserError: there are no runs, or no costs."""
    if results.resolve() != PUBLISHED.resolve():
        _copy(results)
    runs = read_runs(PUBLISHED, Slo())
    plot(runs, PUBLISHED / PLOT)
    for page, text in zip(PAGES, (summary(runs), tables(runs)), strict=True):
        write_section(page, START, text)


def _copy(results: Path) -> None:
    read_runs(results, Slo())  # says what is missing before anything is removed
    if not (results / FILE).exists():
        raise UserError(f"{results / FILE} is missing; `prefillshare bench calibrate {results} --base ...` makes it")
    shutil.rmtree(PUBLISHED / "runs", ignore_errors=True)
    (PUBLISHED / "runs").mkdir(parents=True)
    for name in (FILE, "matrix.json"):
        shutil.copy(results / name, PUBLISHED)
    for file in sorted((results / "runs").glob("*.json")):
        for one in (file, file.with_suffix(".jsonl")):
            shutil.copy(one, PUBLISHED / "runs")


def summary(runs: Sequence[Figures]) -> str:
    """At each workload's highest load: the systems' figures, and how many times better `shared` is."""
    systems = [system for system in SYSTEMS if any(each.system == system for each in runs)]
    baselines = [other for ours, other in against(runs) if ours == "shared"]
    head = [*systems, *(f"shared against {other}" for other in baselines)]
    lines = [f"| | | {' | '.join(head)} |", f"|---|---|{'---|' * len(head)}"]
    for workload in dict.fromkeys(each.workload for each in runs):
        load = highest_load(runs, workload)
        within = [each for each in runs if (each.workload, each.load) == (workload, load)]
        for name in ("sessions a minute", "session s p95", "prefix hit ratio"):
            cells = [cell([each for each in within if each.system == system], name) for system in systems]
            better = [ratio(within, "shared", other, name) if name in RATIOS else None for other in baselines]
            title = f"{workload}, {spoken(load)}" if name == "sessions a minute" else ""
            more = [f"{text} x" if text else "" for text in better]
            lines.append(f"| {title} | {SHOWN[name]} | {' | '.join([*cells, *more])} |")
    return "\n".join(lines)


def tables(runs: Sequence[Figures]) -> str:
    parts = []
    for workload in dict.fromkeys(each.workload for each in runs):
        here = [each for each in runs if each.workload == workload]
        parts += [f"**{workload}**", _systems(here), _ratios(here)]
    return "\n\n".join(part for part in parts if part)


def _systems(runs: Sequence[Figures]) -> str:
    lines = [f"| sessions at a time | system | {' | '.join(SHOWN.values())} | cut off | busy cores |"]
    lines.append(f"|---|---|{'---|' * (len(SHOWN) + 2)}")
    for load in sorted(dict.fromkeys(each.load for each in runs), key=size_of):
        for system in SYSTEMS:
            within = [each for each in runs if (each.load, each.system) == (load, system)]
            if within:
                cells = [cell(within, name) for name in (*SHOWN, "unfinished sessions")]
                lines.append(f"| {size_of(load):g} | {system} | {' | '.join(cells)} | {_busy(within)} |")
    return "\n".join(lines)


def _busy(runs: Sequence[Figures]) -> str:
    """Of each core that workers have, how much of it they used."""
    names = dict.fromkeys(name for each in runs for name in each.values if name.startswith("cpu of core"))
    return ", ".join(cell(runs, name) for name in names)


def _ratios(runs: Sequence[Figures]) -> str:
    lines = []
    for load in sorted(dict.fromkeys(each.load for each in runs), key=size_of):
        within = [each for each in runs if each.load == load]
        for ours, other in against(within):
            cells = [ratio(within, ours, other, name) or "-" for name in RATIOS]
            lines.append(f"| {size_of(load):g} | {ours} | {other} | {' | '.join(cells)} |")
    if not lines:
        return ""
    head = f"| sessions at a time | so many times better is | than | {' | '.join(RATIOS.values())} |"
    return "\n".join([head, f"|---|---|---|{'---|' * len(RATIOS)}", *lines])


def plot(runs: Sequence[Figures], file: Path) -> None:
    """Rates above, p95 of a session below, a column a workload."""
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(each.workload for each in runs))
    figure = Figure(figsize=(4 * len(workloads), 5.6), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(workloads), squeeze=False)
    for column, workload in enumerate(workloads):
        here = [each for each in runs if each.workload == workload]
        for row, name in enumerate(("sessions a minute", "session s p95")):
            draw(grid[row][column], here, name)
        grid[0][column].set_title(workload)
        grid[1][column].set_xlabel(LABELS[here[0].load.partition(":")[0]])
    grid[0][0].set_ylabel("sessions a minute")
    grid[1][0].set_ylabel("p95 of a session, s")
    grid[0][0].legend()
    figure.savefig(file, format="png")


def highest_load(runs: Sequence[Figures], workload: str) -> str:
    return max((each.load for each in runs if each.workload == workload), key=size_of)


def spoken(load: str) -> str:
    kind, _, size = load.partition(":")
    return f"{size} at a time" if kind == "closed" else f"{size} a second"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    for name, matrix in (("short", SHORT), ("full", FULL)):
        command = what.add_parser(name, help=f"{len(matrix.systems)} systems, {matrix.repeats} repeats")
        command.add_argument("--output", type=Path, default=ROOT / "artifacts" / "bench" / name)
        command.set_defaults(matrix=matrix)
    command = what.add_parser("publish", help="tables and plot from records")
    command.add_argument(
        "results", type=Path, nargs="?", default=PUBLISHED, help="a folder of `prefillshare bench run`"
    )
    options = parser.parse_args()
    try:
        if options.what == "publish":
            publish(options.results)
            return 0
        return measure(options.matrix, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
