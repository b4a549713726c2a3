"""What a handoff costs: decode speed against plain vLLM, and a session's second turn against its first.

    python -m experiments.handoff_cost

Starts a deployment with one decode module and plain vLLM with the same checkpoint, measures both in turns, ends plain
vLLM, plays sessions through the router and stops everything. Writes docs/results/handoff-cost.json and the tables of
docs/handoff.md. Takes under ten minutes; timings are worth something on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import Progress

from examples.demo.prepare_base import prepare_base
from experiments.environment import load_when_quiet, versions
from experiments.handoff_cost import decode_speed, second_turn
from experiments.handoff_cost.client import MeasurementFailed, open_client
from experiments.handoff_cost.report import DECODE_START, TURNS_START, decode_table, turns_table
from experiments.handoff_cost.systems import BASE, MAX_MODEL_LEN, MAX_NUM_SEQS, MODULE, plain_vllm, plan
from experiments.section import write_section
from prefillshare.bench.modules import make_module
from prefillshare.bench.plain import PlainVllm
from prefillshare.deployment.checks import check
from prefillshare.deployment.local import LocalDeployment, visibly
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping
from prefillshare.deployment.supervision import StartupFailed, WorkerProcess
from prefillshare.engine.version import vllm_distribution
from prefillshare.errors import UserError

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "artifacts" / "handoff-cost"
RESULTS = ROOT / "docs" / "results" / "handoff-cost.json"
PAGE = ROOT / "docs" / "handoff.md"
_QUICK_ROUNDS, _QUICK_SESSIONS = 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.handoff_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=_positive, default=24, help="turns of each system (default: %(default)s)")
    parser.add_argument("--sessions", type=_positive, default=10, help="sessions of two turns (default: %(default)s)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{_QUICK_ROUNDS} rounds and {_QUICK_SESSIONS} sessions, to see that it works: writes to artifacts/ only",
    )
    parser.add_argument("--first-port", type=int, default=8300, help="of six on 127.0.0.1 (default: %(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sessions = _QUICK_ROUNDS, _QUICK_SESSIONS
    sys.exit(asyncio.run(run(options, Console(width=None if sys.stdout.isatty() else 120))))


async def run(options: argparse.Namespace, console: Console) -> int:
    """Returns the exit code. Whatever ends it, no process is left behind."""
    running: list[LocalDeployment | PlainVllm] = []

    def kill() -> None:
        for system in running:
            system.kill()

    with StopSignals(on_first=partial(say_stopping, console), kill=kill) as signals:
        try:
            local, plain = _prepare(options, console)
            running += [local, plain]
            result = await _measure(local, plain, options, console)
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped; nothing was written")
            return signals.exit_code
        except UserError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 2
        except (StartupFailed, MeasurementFailed, aiohttp.ClientError, TimeoutError) as error:
            console.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            console.print(f"the workers' logs are in {SCRATCH / 'logs'}", markup=False, soft_wrap=True)
            return 1
    _write(result, options.quick, console)
    return 0


def _prepare(options: argparse.Namespace, console: Console) -> tuple[LocalDeployment, PlainVllm]:
    base = prepare_base(ROOT / "artifacts" / "base")
    make_module(base, SCRATCH / "module", name=MODULE, base_name=BASE)
    deployment = plan(base, SCRATCH / "module", SCRATCH / "logs", options.first_port)
    for warning in check(deployment).warnings:
        console.print(f"warning: {warning.subject}: {warning.detail}", style="yellow", markup=False)
    local = LocalDeployment(deployment)
    return local, plain_vllm(deployment, _worker(local, "decode").spec)


async def _measure(
    local: LocalDeployment, plain: PlainVllm, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    prefill, decode = (_worker(local, role).url for role in ("prefill", "decode"))
    load = await load_when_quiet(console)
    worker_key = local.workers[0].spec.worker_key
    async with open_client(worker_key) as http, plain, visibly(local, console):
        with console.status("waiting for plain vLLM"):
            await plain.ready(http)
        with Progress(console=console) as progress:
            turns = 2 * len(decode_speed.BATCHES) * (options.rounds + 1)
            step = partial(progress.advance, progress.add_task("decode speed", total=turns))
            speeds = await decode_speed.measure(
                http, decode_speed.Urls(plain.url, prefill, decode), options.rounds, step
            )
            await plain.stop()
            step = partial(progress.advance, progress.add_task("second turn", total=2 * (options.sessions + 1)))
            sessions = await second_turn.measure(
                http, second_turn.Urls(local.url, prefill, decode), options.sessions, step
            )
        with console.status("stopping the workers"):
            await local.stop()
    return {"environment": _environment(local, load), "decode_speed": speeds, "second_turn": sessions}


def _worker(local: LocalDeployment, role: str) -> WorkerProcess:
    return next(worker for worker in local.workers if worker.spec.role == role)


def _environment(local: LocalDeployment, load: float) -> dict[str, Any]:
    spec = _worker(local, "decode").spec
    return {
        "model": "SmolLM2-135M-Instruct",
        "dtype": spec.dtype,
        "block_size": spec.block_size,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_NUM_SEQS,
        "cores": [worker.spec.core for worker in local.workers],  # of the prefill worker and of the decode worker
        "threads_a_worker": 1,
        "load_before": round(load, 2),
        "decode_speed_tokens": {"prompt": decode_speed.PROMPT_TOKENS, "output": decode_speed.OUTPUT_TOKENS},
        "second_turn_tokens": {
            "context": second_turn.CONTEXT_TOKENS,
            "answer": second_turn.ANSWER_TOKENS,
            "new": second_turn.NEW_TOKENS,
        },
        **vllm_distribution(),
        **versions("nixl", "torch"),
    }


def _write(result: dict[str, Any], quick: bool, console: Console) -> None:
    tables = {DECODE_START: decode_table(result["decode_speed"]), TURNS_START: turns_table(result["second_turn"])}
    file = SCRATCH / "quick.json" if quick else RESULTS
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    for start, table in tables.items():
        if not quick:
            write_section(PAGE, start, table)
        console.print(f"\n{table}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nfigures: {os.path.relpath(file)}", soft_wrap=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    main()
