"""The benchmark's published figures: `python -m experiments.bench short | full | together | both-cores |
limits | models | float32 | small-steps | short-contexts | repeats | publish | glance`.

    short           one load, two systems, in about 15 minutes on two cores
    full            every family, load and system, three times: about a day; goes on where it was stopped
    together        ReAct and Reflexion on `shared` and ordinary vLLMs, which are up at the same time and take
                    turns with every load, three times: two hours and a half
    both-cores      the same with decode workers on both cores, of which one is also the prefill worker's
    limits          every family on `shared` and ordinary vLLMs, which are up at the same time, at loads that `shared`
                    just keeps up with on two cores of an EPYC, and then on `shared-lora` and disaggregation without
                    sharing, for which there is a folder limits-more; three times: 18 hours
    models          whole tool-heavy sessions of one, two and four models, three times: four hours
    float32         whole tool-heavy sessions in float32, for cores without bfloat16 units: two hours
    small-steps     four of these, drawn twice, on `shared` and ordinary vLLMs whose steps are of 256 tokens: an hour
    short-contexts  ReAct and Reflexion in float32: 75 minutes
    repeats         ReAct in float32, three times with other sessions, also on one ordinary vLLM with all adapters: an
                    hour
    publish         writes tables and plots of docs/bench-results.md, and of README.md if it has a place for them, from
                    the records in docs/results/bench, or from those of a folder, which are copied there, with the runs
                    of further folders in place of its own (`publish artifacts/bench/full artifacts/bench/together`).
                    All but `full` and `together` have folders and tables of their own, but for `short` and `models`,
                    which have none: their reports are in artifacts/bench/
    glance          the table of all machines in README.md and docs/bench.md; `publish` writes it too

All but the last two make the base when it is missing, measure what work costs here, run, and leave a report in
artifacts/bench/. Timings are worth something on a machine that does nothing else.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from os.path import relpath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

from examples.demo.prepare_base import prepare_base
from experiments.section import around_section, write_section
from prefillshare.bench.calibrate import calibrate
from prefillshare.bench.cells import ARRIVING, LABELS, Panel, by_load, by_panel, by_system, in_figures
from prefillshare.bench.costs import FILE
from prefillshare.bench.environment import kind_of_machine
from prefillshare.bench.figures import Figures, Slo, read_runs, recorded
from prefillshare.bench.matrix import FULL, SHORT, Matrix, WorkloadConfig, load_matrix
from prefillshare.bench.plots import axis_label, draw
from prefillshare.bench.report import (
    against,
    arrived,
    cell,
    kept_up_cells,
    kept_up_table,
    loads_kept_up,
    ratio,
    write_report,
)
from prefillshare.bench.run import MATRIX, run
from prefillshare.bench.systems import SYSTEMS, Machine, SystemName
from prefillshare.errors import UserError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "results" / "bench"
PAGES = (ROOT / "README.md", ROOT / "docs" / "bench-results.md")
START = "<!-- table: python -m experiments.bench publish -->"
OWN_START = "<!-- table: python -m experiments.bench publish docs/results/{folder} -->"
GLANCE_START = "<!-- table: python -m experiments.bench glance -->"
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

FLOAT32 = Matrix(
    workloads=(WorkloadConfig(source="tool_heavy", sessions=4),),
    systems=("shared", "per-model"),
    loads=("closed:4", "closed:8"),
    repeats=1,
    rounds=1,
    limit_s=5400.0,  # per-model needs an hour for eight
    machine=Machine(dtype="float32"),
)

# An ordinary vLLM whose steps are short decodes between the parts of a long prompt, where it otherwise stands still.
SMALL_STEPS = FLOAT32.model_copy(
    update={
        "systems": ("shared", "colocated"),
        "loads": ("closed:4",),
        "repeats": 2,
        "machine": Machine(dtype="float32", engine_args=("--max-num-batched-tokens", "256")),
    }
)

# Two rounds, so that the last session to end is not one of those that began together; nothing is cut off.
SHORT_CONTEXTS = Matrix(
    workloads=(
        WorkloadConfig(source="react", sessions=2),
        WorkloadConfig(source="reflexion", sessions=2, max_calls=12),
    ),
    loads=("closed:1", "closed:8"),
    systems=("shared", "shared-lora", "per-model", "colocated"),  # those that are published
    repeats=1,
    rounds=2,
    limit_s=1800.0,
    machine=Machine(dtype="float32"),
)

# Where answers are the limit, the two are nearest to each other: nearer than a machine that others share is to itself
# within the quarter of an hour that lies between them in `full`.
TOGETHER = FULL.model_copy(
    update={
        "workloads": FULL.workloads[:2],
        "systems": ("shared", "colocated"),
        "together": True,
    }
)

# The same with decode workers also on the core of the prefill worker, which has time left where answers are the limit.
BOTH_CORES = TOGETHER.model_copy(update={"machine": Machine(decode_cores=(1, 0))})

# Open loops: as many sessions a second as `shared` just keeps up with on two cores of an EPYC with bfloat16 units, of
# Reflexion also more; and for longer: in three minutes a system that falls behind has hardly begun to.
LIMITS = FULL.model_copy(
    update={
        "workloads": tuple(
            workload.model_copy(update={"loads": loads, "minutes": None})
            for workload, loads in zip(
                FULL.workloads,
                (
                    ("closed:1", "closed:8", "closed:24", "poisson:0.3"),
                    ("closed:1", "closed:8", "closed:24", "poisson:0.14", "poisson:0.17"),
                    ("closed:1", "closed:4", "closed:8", "poisson:0.03"),
                ),
                strict=True,
            )
        ),
        "systems": ("shared", "colocated"),
        "together": True,
        "minutes": 6.0,
    }
)
# Four systems at the same time would take 40 GB.
LIMITS_MORE = LIMITS.model_copy(update={"systems": ("shared-lora", "per-model")})

# What one model more costs, with sharing and without. Eight would need sixteen workers under `per-model`, more memory
# than a machine with two cores has.
MODELS = FULL.model_copy(
    update={
        "workloads": (WorkloadConfig(source="tool_heavy", sessions=2),),
        "loads": ("closed:8",),
        "systems": ("shared", "per-model"),
        "models": (1, 2, 4),
    }
)

# How far ratios spread, and what sharing alone is worth where both form one batch of all models' calls.
REPEATS = SHORT_CONTEXTS.model_copy(
    update={
        "workloads": SHORT_CONTEXTS.workloads[:1],
        "loads": ("closed:8",),
        "systems": ("shared", "shared-lora", "per-model", "colocated-lora"),
        "repeats": 3,
    }
)

# Tokens. Longer ones are computed for minutes where there are no bfloat16 units, and `short` has to end within 15.
SHORT_PROMPT = 1200
LONGEST_OF_REACT = 2048

# Columns of a workload's tables: how much is done, how long calls take, and what that costs. Those that say nothing
# about a kind of load are left out.
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
TABLES = (RATES, TIMES, WORK)
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
    ROOT / "README.md": ([name for name in MACHINES if name not in ("bench-limits", "bench-epyc")], False),
    ROOT / "docs" / "bench.md": (list(MACHINES), True),
}
BASELINES: Mapping[SystemName, str] = {"per-model": "`per-model`", "colocated": "ordinary vLLMs"}
# What a baseline is compared with in the summary, where that is not `shared`: what has adapters with what has them too.
LIKE: dict[SystemName, SystemName] = {"colocated-lora": "shared-lora"}
RATIOS = {
    "sessions a minute": "sessions a minute",
    "goodput, calls a minute": "goodput",
    "session s p95": "session p95",
    "prefill tokens a session": "prefill tokens",
}
SUMMARY = ("goodput, calls a minute", "session s p95", "prefix hit ratio")


def measure(matrices: Sequence[Matrix], output: Path, longest_prompt: int | None) -> int:
    """Returns the exit code, as `prefillshare bench run` does. Costs are those of all matrices' systems together, since
    their runs are compared.

    Args:
        matrices: one, or two whose systems have no room beside each other; the runs of the second go to `output`-more.
        longest_prompt: as in `costs.Measurement`.
    """
    console = Console(stderr=True)
    base = prepare_base(ROOT / "artifacts" / "base")
    folders = (output, output.with_name(f"{output.name}-more"))[: len(matrices)]
    if not (output / FILE).exists():
        systems = tuple(dict.fromkeys(system for matrix in matrices for system in matrix.systems))
        whole = matrices[0].model_copy(update={"systems": systems})
        # Nobody simulates the short matrix, which has to end within 15 minutes.
        code = calibrate(whole, base, output, console, longest_prompt=longest_prompt, beside=whole != SHORT)
        if code:
            return code
    for matrix, folder in zip(matrices, folders, strict=True):
        code = run(matrix, base, folder, console)
        if code:
            return code
        if folder != output:
            shutil.copy(output / FILE, folder)
        print("written: " + ", ".join(map(str, write_report(folder, Slo()))))
    return 0


def publish(results: Path, further: Sequence[Path] = ()) -> None:
    """
    Args:
        further: folders whose runs are added, in place of those of the same cell and repeat.

    Raises:
        UserError: there are no runs, no costs, or no place for the tables, or runs are of several kinds of machines.
            Nothing has changed then.
    """
    if further:
        _check_one_kind([results, *further])
        with TemporaryDirectory() as scratch:
            gathered = Path(scratch) / results.name
            _replace(results, gathered)
            for each in further:
                copy_runs(each, gathered)
            publish(gathered)
        return
    runs = read_runs(results, Slo())  # says what is missing before anything is removed
    readme, page = PAGES
    is_float32 = {each.facts["environment"]["dtype"] for each in runs} == {"float32"}
    is_full = load_matrix(results / MATRIX) == FULL and not is_float32
    folder = PUBLISHED if is_full else PUBLISHED.with_name(f"bench-{results.name.removeprefix('bench-')}")
    start = START if is_full else OWN_START.format(folder=folder.name)
    texts = {page: tables(runs)}
    if start in readme.read_text():
        texts[readme] = summary(runs)
    for each in texts:
        around_section(each, start)  # or it has no place for them
    _replace(results, folder)
    for file, names in PLOTS.items():
        plot(runs, folder / file, names)
    for each, text in texts.items():
        write_section(each, start, text)
    write_glances()


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
        where = f"[tables]({relpath(PAGES[1], page.parent)}#{anchor})"
        runs = read_runs(PUBLISHED.with_name(folder), Slo())
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


def _replace(results: Path, published: Path) -> None:
    if results.resolve() == published.resolve():
        return
    if not (results / FILE).exists():
        raise UserError(f"{results / FILE} is missing; `prefillshare bench calibrate {results} --base ...` makes it")
    shutil.rmtree(published / "runs", ignore_errors=True)
    copy_runs(results, published)
    for name in (FILE, MATRIX):
        shutil.copy(results / name, published)


def copy_runs(results: Path, folder: Path) -> None:
    """Those that ended, beside what is there."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for file in sorted((results / "runs").glob("*.json")):
        for one in (file, file.with_suffix(".jsonl")):
            shutil.copy(one, folder / "runs")


def _check_one_kind(folders: Sequence[Path]) -> None:
    environments = [facts["environment"] for each in folders for facts, _ in recorded(each)]
    for name in kind_of_machine("auto"):
        if len(found := {str(each.get(name)) for each in environments}) > 1:
            raise UserError(f"these runs were made with several kinds of {name}: {', '.join(sorted(found))}")


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
            lines.append(f"| {first} | {_name(name)} | {' | '.join([*cells, *more])} |")
    return "\n".join(lines)


def _name(name: str) -> str:
    return next(columns[name] for columns in TABLES if name in columns)


def tables(runs: Sequence[Figures]) -> str:
    """Of each workload and kind of load: rates, times, work, and how many times better ours are."""
    parts = []
    if kept := kept_up_table(runs):
        parts += ["**The highest load that each system kept up with**", kept]
    for panel, shown in by_panel(runs).items():
        parts += [f"**{title(panel, runs)}**", *(_systems(panel, shown, columns) for columns in TABLES)]
        parts += [_ratios(panel, shown)]
    return "\n\n".join(part for part in parts if part)


def title(panel: Panel, runs: Sequence[Figures]) -> str:
    """Without the number of models where all runs have the same."""
    models = f", {panel.models} models" if len({each.models for each in runs}) > 1 else ""
    return f"{panel.workload}{models}{', open loop' if panel.is_open else ''}{panel.how}"


def _systems(panel: Panel, runs: Sequence[Figures], columns: Mapping[str, str]) -> str:
    shown = [name for name in columns if any(each.values.get(name) is not None for each in runs)]
    has_cores = columns is WORK
    head = [LABELS[panel.kind], "system", *(columns[name] for name in shown), *["busy cores"] * has_cores]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for load, of_load in by_load(runs).items():
        for system, within in by_system(of_load).items():
            cells = [cell(within, name) for name in shown] + [_busy(within)] * has_cores
            lines.append(f"| {in_figures(load)} | {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _busy(runs: Sequence[Figures]) -> str:
    """Of each core that workers have, how much of it they used."""
    names = dict.fromkeys(name for each in runs for name in each.values if name.startswith("cpu of core"))
    return ", ".join(cell(runs, name) for name in names)


def _ratios(panel: Panel, runs: Sequence[Figures]) -> str:
    lines = []
    for load, within in by_load(runs).items():
        for ours, other in against(within):
            cells = [ratio(within, ours, other, name) or "-" for name in RATIOS]
            lines.append(f"| {in_figures(load)} | {ours} | {other} | {' | '.join(cells)} |")
    if not lines:
        return ""
    head = f"| {LABELS[panel.kind]} | so many times better is | than | {' | '.join(RATIOS.values())} |"
    return "\n".join([head, f"|---|---|---|{'---|' * len(RATIOS)}", *lines])


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


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    matrices = {
        "short": ((SHORT,), SHORT_PROMPT),
        "full": ((FULL,), None),
        "float32": ((FLOAT32,), None),
        "small-steps": ((SMALL_STEPS,), None),
        "together": ((TOGETHER,), None),
        "both-cores": ((BOTH_CORES,), None),
        "limits": ((LIMITS, LIMITS_MORE), None),
        "models": ((MODELS,), None),
        "short-contexts": ((SHORT_CONTEXTS,), None),
        "repeats": ((REPEATS,), LONGEST_OF_REACT),
    }
    for name, (of_name, longest_prompt) in matrices.items():
        systems = sum(len(matrix.systems) for matrix in of_name)
        command = what.add_parser(name, help=f"{systems} systems, repeats: {of_name[0].repeats}")
        command.add_argument("--output", type=Path, default=ROOT / "artifacts" / "bench" / name)
        command.set_defaults(matrices=of_name, longest_prompt=longest_prompt)
    command = what.add_parser("publish", help="tables and plots from records")
    command.add_argument(
        "results", type=Path, nargs="*", default=[PUBLISHED], help="folders of `prefillshare bench run`"
    )
    what.add_parser("glance", help="the table of all machines, from their records")
    options = parser.parse_args()
    try:
        if options.what == "publish":
            publish(options.results[0], options.results[1:])
            return 0
        if options.what == "glance":
            write_glances()
            return 0
        return measure(options.matrices, options.output, options.longest_prompt)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
