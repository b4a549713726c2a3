"""Accuracy of decode modules against full fine-tuning and naive sharing, on three task families.

python -m experiments.accuracy run                  trains and scores what has no record yet
python -m experiments.accuracy table                writes the tables of docs/accuracy.md from the records
python -m experiments.accuracy sweep                accuracy by the share of the prompt's KV that is the base's
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from experiments.accuracy.cells import RESULTS
from experiments.accuracy.families import COUNTED, FAMILIES
from prefillshare.errors import UserError

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "artifacts" / "accuracy"
INTERRUPTED = 130


def main() -> int:
    options = _parser().parse_args()
    try:
        return {"run": _run, "table": _table, "sweep": _sweep}[options.command](options)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    # Not at the top, so that `--help` and bad options do not wait for torch.
    from examples.demo.prepare_base import prepare_base
    from experiments.accuracy.run import Grid, run

    what = Grid(
        families=tuple(options.families),
        seeds=tuple(options.seeds),
        rates=tuple(sorted(options.rates)) if options.rates else None,
        items=options.items,
        base=prepare_base(options.base),
        results=options.results,
        checkpoints=CHECKPOINTS,
        adapters_only=options.adapters,
    )
    return 0 if run(what, budget_s=options.budget_minutes * 60, console=Console()) else 1


def _table(options: argparse.Namespace) -> int:
    from experiments.accuracy.report import write_report

    print(write_report(options.results, ROOT / "docs"))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from examples.demo.prepare_base import prepare_base
    from experiments.accuracy.sweep import Sweep

    what = Sweep(
        family=options.family,
        seed=options.seed,
        items=options.items,
        base=prepare_base(options.base),
        results=options.results,
        checkpoints=CHECKPOINTS,
        docs=ROOT / "docs",
    )
    print(what.run())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.accuracy", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score what has no record yet")
    table = commands.add_parser("table", help="write the tables, their JSON and the plot from the records")
    sweep = commands.add_parser("sweep", help="score the best checkpoints on 0 to 100 %% of base KV")
    for command in (run, table, sweep):
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    run.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=list(COUNTED))
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--rates", nargs="+", type=_positive(float), help="learning rates (default: each family's own)")
    run.add_argument("--adapters", action="store_true", help="decode modules as LoRA adapters, and nothing else")
    sweep.add_argument("--family", choices=sorted(FAMILIES), default="sql")
    sweep.add_argument("--seed", type=int, default=2)
    for command in (run, sweep):
        command.add_argument(
            "--items", type=_positive(int), default=200, help="test items; half as many for validation"
        )
        command.add_argument("--base", type=Path, default=ROOT / "artifacts" / "base", help="the base's checkpoint")
    run.add_argument(
        "--budget-minutes", type=_positive(float), default=float("inf"), help="start nothing that ends later"
    )
    return parser


def _positive(kind: type[float]) -> type:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main())
