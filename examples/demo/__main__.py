"""Trains two decode modules, serves them over one shared prefill, plays a session and shows what sharing saved.

What was made is kept in artifacts/ and used again; the figures go to artifacts/demo.json. The exit code is 1 when an
answer was served other than Transformers has it, or the base computed another number of tokens than counting says.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from openai import OpenAIError
from rich.console import Console

from examples.demo.blame import answers_in_transformers
from examples.demo.play import Call, Message, Player, Turn
from examples.demo.savings import as_json, calls_table, count_savings, own_mistakes, savings_table, shortcomings
from examples.demo.steps import HERE, make_base, make_module, shown
from examples.demo.tasks import TASKS, session
from prefillshare.config import Deployment, load_deployment
from prefillshare.deployment.checks import check
from prefillshare.deployment.local import LocalDeployment, visibly
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.errors import UserError

REPOSITORY = HERE.parent.parent
ARTIFACTS = REPOSITORY / "artifacts"
FIGURES = ARTIFACTS / "demo.json"
_LOG_WIDTH = 120


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=11, help="which session to play (default: %(default)s)")
    parser.add_argument(
        "--deployment",
        type=Path,
        default=HERE / "deployment.yaml",
        help="the deployment file (default: examples/demo/deployment.yaml)",
    )
    arguments = parser.parse_args()
    # In a log or a pipe Rich takes 80 columns, which cut the tables' headings.
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    sys.exit(asyncio.run(demo(arguments.deployment, arguments.seed, console)))


async def demo(deployment_file: Path, seed: int, console: Console) -> int:
    """Returns the exit code. Whatever ends it, no process is left behind."""
    running: list[LocalDeployment] = []

    def kill() -> None:
        for deployment in running:
            deployment.kill()

    with StopSignals(on_first=partial(say_stopping, console), kill=kill) as signals:
        try:
            await _make(console)
            local = _prepare(deployment_file, console)
            running.append(local)
            calls = await _serve_and_play(local, seed, console)
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped; what was made is kept")
            return signals.exit_code
        except UserError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 2
        except StartupFailed as error:
            console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
        except OpenAIError as error:
            console.print(f"\na call failed: {error}; see the workers' logs", style="red", markup=False, soft_wrap=True)
            return 1
    return _show(calls, local.deployment, console)


async def _make(console: Console) -> None:
    began = time.monotonic()
    console.rule("1  base and decode modules", align="left")
    await make_base(ARTIFACTS / "base", console)
    for task in TASKS:
        await make_module(task, console)
    console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")


def _prepare(deployment_file: Path, console: Console) -> LocalDeployment:
    console.rule("2  one prefill worker, two decode workers, the router", align="left")
    deployment = load_deployment(deployment_file)
    for warning in check(deployment).warnings:
        console.print(f"warning: {warning.subject}: {warning.detail}", style="yellow", markup=False)
    return LocalDeployment(deployment)


async def _serve_and_play(local: LocalDeployment, seed: int, console: Console) -> list[Call]:
    began = time.monotonic()
    console.print(f"logs are in {shown(local.deployment.log_dir)}")
    async with visibly(local, console):
        console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")
        console.rule("3  a session", align="left")
        context, turns = session(seed)
        console.print(
            f"One context for both models; {len(turns)} calls to {local.url}/v1 by the openai client, every answer "
            "joins the context"
        )
        calls = await _play(local, context, turns, console)
        with console.status("stopping the workers"):
            await local.stop()
    return calls


async def _play(
    local: LocalDeployment, context: Sequence[Message], turns: Sequence[Turn], console: Console
) -> list[Call]:
    workers = {worker.spec.name: worker for worker in local.workers}
    prefill = next(worker for worker in local.workers if worker.spec.role == "prefill")
    player = Player(
        router=local.url,
        prefill=prefill.url,
        worker_key=prefill.spec.worker_key,
        base=prefill.spec.served_names[0],
        decode={name: worker.url for name, worker in workers.items() if worker.spec.role == "decode"},
        console=console,
    )
    try:
        return await player.play(context, turns)
    finally:
        await player.close()


def _show(calls: list[Call], deployment: Deployment, console: Console) -> int:
    """Returns the exit code: 1 when not all is as it has to be."""
    savings = count_savings(calls, block_size=deployment.workers.block_size)
    console.rule("4  what sharing saved", align="left")
    console.print(calls_table(calls))
    console.print(savings_table(savings))
    with console.status("asking Transformers about wrong answers"):
        in_transformers = answers_in_transformers(calls, deployment)
    FIGURES.write_text(json.dumps(as_json(calls, savings, in_transformers), indent=2) + "\n")
    console.print(f"figures: {shown(FIGURES)}")
    if text := own_mistakes(calls, in_transformers):
        console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)
    found = shortcomings(calls, savings, in_transformers)
    for text in found:
        console.print(f"error: {text}", style="red", markup=False, soft_wrap=True)
    return 1 if found else 0


if __name__ == "__main__":
    main()
