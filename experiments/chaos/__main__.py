"""Kills and stops workers at random while sessions run, and checks every answer.

    python -m experiments.chaos --minutes 20 --seed 1

Starts two prefill workers, three decode workers for two modules, and the router; plays random sessions whose answers
the Transformers reference has computed before. Every call must be served with exactly the reference's tokens or fail
with a documented error before its deadline, and in the end all KV pools must be empty; else the exit code is 1. Writes
JSON lines to artifacts/chaos/ as it goes. A run of 20 minutes or more also writes docs/results/chaos.json and the table
of docs/chaos.md. What is struck when follows from the seed; what it meets hangs on the machine's speed.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import AutoTokenizer

from examples.demo.prepare_base import prepare_base
from experiments.chaos.plan import make_plan
from experiments.chaos.report import START, summary, table
from experiments.chaos.run import CLIENTS, Found, Log, torment
from experiments.chaos.systems import BLOCK_SIZE, make_modules, plan_deployment
from experiments.environment import versions
from experiments.random_sessions import SENTENCES, make_session
from experiments.references import Call, Reference
from experiments.section import write_section
from prefillshare.deployment.checks import check
from prefillshare.deployment.local import LocalDeployment, visibly
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.engine.version import vllm_distribution
from prefillshare.errors import UserError

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "artifacts" / "chaos"
RESULTS = ROOT / "docs" / "results" / "chaos.json"
PAGE = ROOT / "docs" / "chaos.md"
_PUBLISHED_MINUTES = 20.0
_SESSIONS_A_MINUTE, _FEWEST_SESSIONS = 3, 12  # each is played several times


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of sessions and strikes (default: %(default)s)")
    parser.add_argument("--first-port", type=int, default=8400, help="of twenty on 127.0.0.1 (default: %(default)s)")
    options = parser.parse_args()
    sys.exit(asyncio.run(run(options, Console(width=None if sys.stdout.isatty() else 120))))


async def run(options: argparse.Namespace, console: Console) -> int:
    """Returns the exit code. Whatever ends it, no process is left behind."""
    running: list[LocalDeployment] = []

    def kill() -> None:
        for local in running:
            local.kill()

    with StopSignals(on_first=partial(say_stopping, console), kill=kill) as signals:
        try:
            local, reference, scripts = await _prepare(options, console)
            running.append(local)
            found = await _torment(local, reference, scripts, options, console)
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped; no table was written")
            return signals.exit_code
        except UserError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 2
        except StartupFailed as error:
            console.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
    _write(summary(found, seed=options.seed, minutes=options.minutes, environment=_environment()), console)
    return 0 if found.clean else 1


async def _prepare(
    options: argparse.Namespace, console: Console
) -> tuple[LocalDeployment, Reference, list[list[Call]]]:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    _log_to(SCRATCH / f"router-{options.seed}.log")
    base = prepare_base(ROOT / "artifacts" / "base")
    with console.status("making the modules, and what they must answer"):
        modules = await asyncio.to_thread(make_modules, base, SCRATCH / "modules")
        cores = tuple(sorted(os.sched_getaffinity(0)))
        deployment = plan_deployment(base, modules, SCRATCH / "logs", options.first_port, cores)
        for warning in check(deployment).warnings:
            console.print(f"warning: {warning.subject}: {warning.detail}", style="yellow", markup=False)
        reference = await asyncio.to_thread(Reference, base, modules)
        sentences = [tuple(ids) for ids in AutoTokenizer.from_pretrained(base)(list(SENTENCES))["input_ids"]]
        count = max(_FEWEST_SESSIONS, round(options.minutes * _SESSIONS_A_MINUTE))
        models = ("full", "lora", "lora")  # as their decode workers
        sessions = [make_session(options.seed, number, models, sentences, BLOCK_SIZE) for number in range(count)]
        scripts = await asyncio.to_thread(reference.scripts, sessions)
    return LocalDeployment(deployment), reference, scripts


async def _torment(
    local: LocalDeployment,
    reference: Reference,
    scripts: list[list[Call]],
    options: argparse.Namespace,
    console: Console,
) -> Found:
    async with visibly(local, console):
        with Progress(console=console) as progress:
            task = progress.add_task("calls", total=None)

            def step(found: Found) -> None:
                served = sum(call["verdict"] == "served" for call in found.calls)
                progress.update(task, advance=1, description=f"{len(found.calls)} calls, {served} served")

            found = await torment(
                local,
                scripts,
                reference,
                plan=make_plan(options.seed, options.minutes * 60, len(local.workers)),
                seed=options.seed,
                duration_s=options.minutes * 60,
                log=Log(SCRATCH / f"run-{options.seed}.jsonl"),
                step=step,
            )
        with console.status("stopping the workers"):
            await local.stop()
    return found


def _log_to(file: Path) -> None:
    """The router's log into a file of its own, apart from the progress."""
    logger = logging.getLogger("prefillshare")
    handler = logging.FileHandler(file, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)


def _environment() -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "clients": CLIENTS,
        **vllm_distribution(),
        **versions("nixl"),
    }


def _write(result: dict[str, Any], console: Console) -> None:
    published = result["minutes"] >= _PUBLISHED_MINUTES
    file = RESULTS if published else SCRATCH / f"summary-{result['seed']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    if published:
        write_section(PAGE, START, table(result))
    console.print(
        f"\n{table(result)}\n\nfigures: {os.path.relpath(file)}", markup=False, highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
