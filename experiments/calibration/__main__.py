"""How well the simulator predicts runs of the benchmark.

    python -m experiments.calibration RESULTS
    python -m experiments.calibration RESULTS --fit react/closed:1 react/closed:8

RESULTS is a folder of `prefillshare bench run` with the costs of `prefillshare bench calibrate`, which were measured
without any queue, on one model: the fit has seen none of the runs. Every run is simulated with the sessions that it
played, through the router's own placement, and compared. With `--fit`, the runs of these workloads and loads, of all
systems, say how fast the machine was in comparison to when its costs were measured, and how much slower a core is
beside work on another one; all others are then predicted with that, too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.calibration.report import ratios, table, what_the_fit_is_worth
from experiments.calibration.runs import NOT_SIMULATED, WHY_NOT, Played, compare, played
from experiments.section import around_section, write_section
from prefillshare.bench.costs import FILE
from prefillshare.bench.figures import recorded
from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import AS_MEASURED, fit_pace
from prefillshare.workloads.tokens import load_tokenise

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "simulation.md"
START = "<!-- table: python -m experiments.calibration docs/results/{arguments} -->"
PREDICTED = "calibration.json"  # beside the costs, of a folder of published runs


def divided(runs: Sequence[Played], kinds: Sequence[str]) -> tuple[list[Played], list[Played]]:
    """Those to fit to, and the others.

    Raises:
        UserError: a kind that no run has, or kinds that leave no run to predict.
    """
    there = dict.fromkeys(run.kind for run in runs)
    for kind in kinds:
        if kind not in there:
            raise UserError(f"--fit {kind}: no run of that workload at that load; there are {', '.join(there)}")
    if not set(there) - set(kinds):
        raise UserError("--fit: no run is left that could be predicted; leave out some of its values")
    return [run for run in runs if run.kind in kinds], [run for run in runs if run.kind not in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="a folder of `prefillshare bench run`, with costs.json")
    parser.add_argument("--base", type=Path, default=ROOT / "artifacts" / "base", help="the base of the runs")
    parser.add_argument(
        "--fit", nargs="+", default=[], metavar="WORKLOAD/LOAD", help="runs to fit to, such as react/closed:8"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"write RESULTS/{PREDICTED} and the table of docs/simulation.md that is named after RESULTS and what is "
        "fitted to; RESULTS is a folder that `python -m experiments.bench publish` made",
    )
    options = parser.parse_args()
    name = options.results.resolve().name
    start = START.format(arguments=" --fit ".join(filter(None, (name, " ".join(options.fit)))))
    try:
        if options.publish:
            around_section(PAGE, start)  # or the page has no place for the table, which is known before minutes of work
        tokenise, costs = load_tokenise(options.base), options.results / FILE
        found = recorded(options.results)
        known = [(facts, rows) for facts, rows in found if facts["system"] != NOT_SIMULATED]
        if not known:
            raise UserError(f"{options.results}: {WHY_NOT}, and there are no runs of another system")
        if len(known) < len(found):
            print(f"left out, {len(found) - len(known)} runs: {WHY_NOT}", file=sys.stderr)
        all_played = [played(facts, rows, tokenise, costs) for facts, rows in known]
        to_fit, others = divided(all_played, options.fit)
        pace = fit_pace([run.measured for run in to_fit]) if to_fit else AS_MEASURED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = [compare(run, pace, ranges=bool(to_fit)) for run in others]
    text = table(runs)
    if to_fit:
        by_costs = [compare(run, ranges=True) for run in others]
        text = f"{what_the_fit_is_worth(by_costs, runs, pace)}\n\n{text}"
    print(text)
    if options.publish:
        content = {"pace": asdict(pace), "ratios": ratios(runs), "runs": [vars(run) for run in runs]}
        (options.results / PREDICTED).write_text(json.dumps(content, indent=1) + "\n")
        write_section(PAGE, start, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
