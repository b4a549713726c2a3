"""How well the simulator predicts runs of the benchmark, and what it makes of them with something changed.

    python -m experiments.calibration RESULTS
    python -m experiments.calibration RESULTS --fit react/closed:1 react/closed:8
    python -m experiments.calibration RESULTS --only tool_heavy --with kv=1.5 --with kv=2

RESULTS is a folder of `prefillshare bench run` with the costs of `prefillshare bench calibrate`, which were measured
without any queue, on one model: the fit has seen none of the runs. Every run is simulated with the sessions that it
played, through the router's own placement, and compared. With `--fit`, the runs of these workloads and loads, of all
systems, say how fast the machine was in comparison to when its costs were measured, and how much slower a core is
beside work on another one; all others are then predicted with that, too.

With `--with` runs are simulated once more for every value of a field, and for every combination where several fields
are given. Fields, of all systems or, as `colocated.kv`, of one:

    kv=FACTOR                   so many times the KV memory of every worker
    models=N                    so many models, for the same sessions and the same KV memory in total
    max_num_batched_tokens=N    tokens that a step computes at most
    cached_first_s=S            for how long the router lets mostly cached prompts go first
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.calibration.changes import AS_IT_WAS, Change, Variant, variants
from experiments.calibration.publish import ALL, START, find_place, publish, publish_changes
from experiments.calibration.report import table, table_of_changes
from experiments.calibration.runs import NOT_SIMULATED, WHY_NOT, Played, compare, played
from experiments.calibration.worth import what_the_fit_is_worth
from prefillshare.bench.costs import FILE
from prefillshare.bench.figures import recorded
from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import AS_MEASURED, Pace, fit_pace
from prefillshare.workloads.tokens import load_tokenise

ROOT = Path(__file__).parents[2]
Recorded = tuple[dict[str, Any], list[dict[str, Any]]]
Play = Callable[[Recorded, Change], Played]


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
    options = _parser().parse_args()
    try:
        changes = variants(options.changes)
        arguments = _arguments(options)
        start = START.format(arguments=arguments) if changes else ALL
        if options.only and not changes:
            raise UserError("--only: only together with --with; predictions are of all runs")
        if options.publish:
            find_place(options.results, start)  # which is known before minutes of work
        known = _known(options.results)
        tokenise, costs = load_tokenise(options.base), options.results / FILE

        def play(each: Recorded, change: Change = AS_IT_WAS) -> Played:
            return played(*each, tokenise, costs, change)

        all_played = [play(each) for each in known]
        to_fit, others = divided(all_played, options.fit)
        pace = fit_pace([run.measured for run in to_fit]) if to_fit else AS_MEASURED
        if changes:
            text = _with_changes(_chosen(known, options.only, changes), changes, play, pace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if changes:
        print(text)
        if options.publish:
            publish_changes(start, text)
        return 0
    runs = [compare(run, pace, ranges=bool(to_fit)) for run in others]
    by_costs = [compare(run, ranges=True) for run in others] if to_fit else []
    text = table(runs)
    if to_fit:
        text = f"{what_the_fit_is_worth(by_costs, runs, pace)}\n\n{text}"
    print(text)
    if options.publish:
        publish(options.results, arguments, text, runs, pace, by_costs)
    return 0


def _known(results: Path) -> list[Recorded]:
    """The runs that can be simulated. Raises UserError if there are none."""
    found = recorded(results)
    known = [(facts, rows) for facts, rows in found if facts["system"] != NOT_SIMULATED]
    if not known:
        raise UserError(f"{results}: {WHY_NOT}, and there are no runs of another system")
    if len(known) < len(found):
        print(f"left out, {len(found) - len(known)} runs: {WHY_NOT}", file=sys.stderr)
    return known


def _chosen(known: Sequence[Recorded], only: Sequence[str], changes: Sequence[Variant]) -> list[Recorded]:
    """Raises UserError if `shared` is not among them, or no other system, or one that is to be changed."""
    chosen = [each for each in known if not only or any(part in each[0]["run"] for part in only)]
    systems = {facts["system"] for facts, _ in chosen}
    if "shared" not in systems or len(systems) == 1:
        raise UserError("--with: no run of `shared` and of another system to compare; --only chooses by names of runs")
    if missing := set().union(*(each.systems for each in changes)) - systems:
        raise UserError(f"--with {missing.pop()}: no run of that system; there are {', '.join(sorted(systems))}")
    return chosen


def _with_changes(chosen: Sequence[Recorded], changes: Sequence[Variant], play: Play, pace: Pace) -> str:
    """The table of all variants. Raises UserError as `played`."""
    as_it_was = [compare(play(each, AS_IT_WAS), pace) for each in chosen]
    changed = {
        variant.title: [compare(play(each, variant.of(each[0]["system"])), pace) for each in chosen]
        for variant in changes
    }
    return table_of_changes(as_it_was, changed)


def _arguments(options: argparse.Namespace) -> str:
    """By which a table is found again."""
    words = [f"docs/results/{options.results.resolve().name}"]
    for name, values in (("--fit", options.fit), ("--only", options.only)):
        words += [name, *values] if values else []
    words += [word for change in options.changes for word in ("--with", change)]
    return shlex.join(words)


def _parser() -> argparse.ArgumentParser:
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
        "--with",
        dest="changes",
        action="append",
        default=[],
        metavar="[SYSTEM.]FIELD=VALUE",
        help="what to change; may be given several times",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="runs to change: those with one of these in their names"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="RESULTS is a folder in docs/results: write the tables into it and the summary of docs/simulation.md, or "
        "with --with the table there that is named after this command",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
