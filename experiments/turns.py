"""What turns on a shared device are worth: `python -m experiments.turns measure | publish`.

`shared` with four models, eight sessions at a time, without turns and with them, one after the other in each repeat:
ten minutes a repeat on two cores. Runs are in artifacts/bench/turns, and the same command goes on where it was stopped.
`publish` copies them to docs/results/turns and writes the table in docs/flow.md from what is there.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.demo.prepare_base import prepare_base
from experiments.bench.matrices import SHORT_CONTEXTS
from experiments.bench.records import copy_runs
from experiments.section import around_section, write_section
from prefillshare.bench.cells import by_panel
from prefillshare.bench.figures import Figures, Slo, read_runs, recorded
from prefillshare.bench.matrix import Matrix
from prefillshare.bench.report import with_spread
from prefillshare.bench.run import run
from prefillshare.bench.systems import Machine
from prefillshare.errors import UserError

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "artifacts" / "bench" / "turns"
PUBLISHED = ROOT / "docs" / "results" / "turns"
PAGE = ROOT / "docs" / "flow.md"
START = "<!-- table: python -m experiments.turns publish -->"

TURNS_S = {"without": 0.0, "with": Machine().turn_s}
REPEATS = 3
# Figures by their names in the table, and whether more is better.
SHOWN = {
    "sessions a minute": ("sessions a minute", True),
    "session s p95": ("session p95, s", False),
    "call s p95": ("call p95, s", False),
    "ttft s p95": ("first token p95, s", False),
    "tpot s": ("s a token", False),
}
CORE_TIME = "decode core, ms a token"


def matrix(turn_s: float) -> Matrix:
    return SHORT_CONTEXTS.model_copy(
        update={
            "systems": ("shared",),
            "loads": ("closed:8",),
            "repeats": REPEATS,
            "machine": Machine(turn_s=turn_s),
        }
    )


def measure(repeats: int, console: Console) -> int:
    """Repeat by repeat, since a machine's speed changes; returns the exit code, as `prefillshare bench run`."""
    base = prepare_base(ROOT / "artifacts" / "base")
    for repeat in range(repeats):
        for name, turn_s in TURNS_S.items():
            if code := run(matrix(turn_s), base, RUNS / name, console, [f"-r{repeat}"]):
                return code
    return 0


def publish() -> str:
    """Returns the table.

    Raises:
        UserError: there are no runs, or there is no place for the table.
    """
    around_section(PAGE, START)  # this and the next say what is missing before anything is removed
    if RUNS.exists():
        for name in TURNS_S:
            recorded(RUNS / name)
        for name in TURNS_S:
            shutil.rmtree(PUBLISHED / name, ignore_errors=True)
            copy_runs(RUNS / name, PUBLISHED / name)
    text = table({name: read_runs(PUBLISHED / name, Slo()) for name in TURNS_S})
    write_section(PAGE, START, text)
    return text


def table(runs: dict[str, Sequence[Figures]]) -> str:
    """Medians over repeats, with the lowest and the highest; ratios are within repeats, above 1 where turns help."""
    both = set.intersection(*({(each.workload, each.repeat) for each in found} for found in runs.values()))
    runs = {name: [each for each in found if (each.workload, each.repeat) in both] for name, found in runs.items()}
    names = [*(shown for shown, _ in SHOWN.values()), CORE_TIME]
    lines = [f"| | turns | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for panel, without in by_panel(runs["without"]).items():
        within = {"without": without, "with": by_panel(runs["with"])[panel]}
        values = {name: [_values(each, within[name]) for each in names] for name in TURNS_S}
        for name, cells in values.items():
            lines.append(f"| {panel.workload} | {name} | {' | '.join(map(_cell, cells))} |")
        ratios = []
        for name, one, two in zip(names, values["without"], values["with"], strict=True):
            more_is_better = dict(SHOWN.values()).get(name, False)
            ratios.append([b / a if more_is_better else a / b for a, b in zip(one, two, strict=True)])
        lines.append(f"| | so many times better | {' | '.join(with_spread(each, 2) for each in ratios)} |")
    return "\n".join(lines)


def _values(shown: str, runs: Sequence[Figures]) -> list[float]:
    """By repeat."""
    ordered = sorted(runs, key=lambda run: run.repeat)
    if shown == CORE_TIME:
        return [1e3 * _decode_s(run) for run in ordered]
    name = next(name for name, (title, _) in SHOWN.items() if title == shown)
    return [run.values[name] or 0.0 for run in ordered]


def _decode_s(run: Figures) -> float:
    """Of the decode workers' engines, for each token of an answer."""
    workers = [worker for worker in run.facts["use"]["workers"] if worker["role"] == "decode"]
    spent, tokens = (sum(worker[key] for worker in workers) for key in ("cpu_s", "output_tokens"))
    return float(spent / tokens)


def _cell(values: Sequence[float]) -> str:
    return with_spread(values, 3 if max(values) < 1 else 1 if max(values) > 10 else 2)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.turns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    command = what.add_parser("measure", help="run what is missing")
    command.add_argument("--repeats", type=int, default=REPEATS, choices=range(1, REPEATS + 1), help="how many to have")
    what.add_parser("publish", help="the table in docs/flow.md")
    options = parser.parse_args()
    try:
        if options.what == "measure":
            return measure(options.repeats, Console(stderr=True))
        print(publish())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
