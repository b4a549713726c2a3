"""What was predicted: beside the records of the runs, and what all of them come to in docs/simulation.md."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.calibration.report import ratios
from experiments.calibration.runs import Compared
from experiments.calibration.worth import AS_MEASURED, summary
from experiments.section import around_section, write_section
from prefillshare.bench.costs import FILE, measured_with
from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import Pace

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"
START = "<!-- table: python -m experiments.calibration {arguments} -->"
ALL = START.format(arguments="docs/results/NAME --publish")
PREDICTED, TABLES = "calibration.json", "calibration.md"  # in the folder of the runs
_HEAD = """# What the simulator makes of the runs in {name}

    python -m experiments.calibration {arguments} --publish

In the table of systems a cell has what was measured, what was simulated and the error of the latter; medians over the
repeats. Both end at the run's limit. A session p95 that lies beyond what was seen until then, or rests on the last
session that went on after others had been cut off, is given as at least (>=) that, and makes no ratio.

"""


def find_place(results: Path, start: str) -> None:
    """
    Raises:
        UserError: the folder is none of those that are published, or the page has no place for this table.
    """
    published = PAGE.parent / "results"
    if results.resolve().parent != published.resolve():
        raise UserError(f"--publish: {results} is none of the folders in {published}")
    around_section(PAGE, start)


def publish(
    results: Path, arguments: str, text: str, runs: Sequence[Compared], pace: Pace, by_costs: Sequence[Compared]
) -> None:
    """Writes the tables and what they are made of into `results`, and the summary of all folders that have them.

    Args:
        by_costs: the same as `runs`, but with costs as they were measured; empty if `runs` are that.
    """
    content = {
        "pace": asdict(pace),
        "ratios": ratios(runs),
        "runs": [vars(run) for run in runs],
        "runs_by_costs": [vars(run) for run in by_costs],
    }
    (results / PREDICTED).write_text(json.dumps(content, indent=1) + "\n")
    (results / TABLES).write_text(f"{_HEAD.format(name=results.name, arguments=arguments)}{text}\n")
    files = sorted((PAGE.parent / "results").glob(f"*/{PREDICTED}"))
    write_section(PAGE, ALL, summary({_where(file.parent): _ways(file) for file in files}))


def publish_changes(start: str, text: str) -> None:
    """The table of runs with something changed, where the page has the line `start`. Raises as `find_place`."""
    write_section(PAGE, start, text)


def _where(folder: Path) -> str:
    """The folder as a link from the page, and what its runs were made on."""
    machine = measured_with(folder / FILE)
    return ", ".join([f"[{folder.name}](results/{folder.name}/{TABLES})", machine["processor"], machine["dtype"]])


def _ways(file: Path) -> Mapping[str, Sequence[Compared]]:
    """What was predicted, by the way in which it was."""
    found = json.loads(file.read_text())
    runs, by_costs = ([Compared(**run) for run in found[name]] for name in ("runs", "runs_by_costs"))
    return {AS_MEASURED: by_costs, "fitted": runs} if by_costs else {AS_MEASURED: runs}
