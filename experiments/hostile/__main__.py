"""Hostile requests at a router with real workers, while honest sessions go on.

    python -m experiments.hostile --requests 10000 --seed 1

Asserts of every request: an answer in time, no 500 and nothing of another session; and of the whole: the honest
sessions' answers are the reference's, no process died, no log holds a key or a prompt, all KV pools are empty
afterwards. With 10,000 requests or more it writes docs/results/hostile.json and the table of docs/security.md.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from examples.demo.prepare_base import prepare_base
from experiments.environment import versions
from experiments.hostile import deployment
from experiments.hostile.attack import Outcome, attack
from experiments.hostile.cases import Known, draw
from experiments.hostile.honest import make_sessions, names
from experiments.hostile.report import START, table
from experiments.references import Reference
from experiments.section import write_section
from prefillshare.deployment.signals import StopSignals

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "artifacts" / "hostile"
RESULTS = ROOT / "docs" / "results" / "hostile.json"
PAGE = ROOT / "docs" / "security.md"
SESSIONS = 3
PUBLISHED = 10_000  # fewer are a trial
MARK = "kestrel5af3107a40bc"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.hostile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from (default: %(default)s)")
    parser.add_argument("--only", type=int, help="send this one alone, as a problem's message numbers it")
    parser.add_argument("--first-port", type=int, default=8400, help="of seven on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--base", type=Path, default=ROOT / "artifacts" / "base", help="(default: the demo's)")
    options = parser.parse_args()
    sys.exit(asyncio.run(run(options, Console(width=None if sys.stdout.isatty() else 120))))


async def run(options: argparse.Namespace, console: Console) -> int:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    base = prepare_base(options.base)
    module = deployment.make_module(base, SCRATCH / "module")
    keys = deployment.new_keys("honest", "operator", "mallory", "trudy")
    known = Known((keys["mallory"], keys["trudy"]), deployment.MODULE, names(SESSIONS), MARK, options.first_port + 4)
    with console.status("drawing requests, and the reference's answers"):
        cases = draw(known, options.requests, options.seed)
        sessions = make_sessions(
            Reference(base, {deployment.MODULE: module}), deployment.MODULE, SESSIONS, options.seed
        )
    if options.only is not None:
        cases = [cases[options.only]]
    file = deployment.plan(base, module, SCRATCH, options.first_port, keys)
    console.print("starting the workers")
    # Nothing more happens at a second signal: `serve` is killed anyway if it takes too long to stop.
    with StopSignals(on_first=lambda number: console.print(f"{number.name}: stopping"), kill=lambda: None) as signals:
        try:
            async with deployment.serving(file, options.first_port, keys) as target:
                with Progress(console=console) as progress:
                    task = progress.add_task("requests", total=len(cases))
                    outcome = await attack(target, cases, sessions, MARK, advance=lambda: progress.advance(task))
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped; no table was written")
            return signals.exit_code
        except deployment.NotServing as error:
            console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
            return 2
    _report(outcome, options, console)
    return 1 if outcome.problems else 0


def _report(outcome: Outcome, options: argparse.Namespace, console: Console) -> None:
    record = {"seed": options.seed, **outcome.record(), "environment": versions("hypothesis", "starlette", "uvicorn")}
    text = table(record)
    if outcome.cases >= PUBLISHED:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
        write_section(PAGE, START, text)
    (SCRATCH / "last.json").write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)
    for problem in outcome.problems[:50]:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(outcome.problems)} problem(s); record: {os.path.relpath(SCRATCH / 'last.json')}")


if __name__ == "__main__":
    main()
