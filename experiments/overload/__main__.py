"""What becomes of calls when five times as many come as the workers can serve.

    python -m experiments.overload

Starts a deployment with one decode module and, in each round, measures the capacity (as many clients at a time as a
worker runs calls), then lets calls arrive at that rate and at five times that rate, as Poisson processes. No client
tries again. Writes docs/results/overload.json, the plot beside it and the table of docs/overload.md. Takes about ten
minutes; timings are worth something on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import Progress

from examples.demo.prepare_base import prepare_base
from experiments.environment import load_when_quiet, versions
from experiments.handoff_cost.client import MeasurementFailed
from experiments.handoff_cost.systems import BASE, MODULE
from experiments.overload.load import OUTPUT_TOKENS, PROMPT_TOKENS, Answer, Clients
from experiments.overload.plot import draw
from experiments.overload.summary import START, Figures, as_json, figures, table
from experiments.section import write_section
from prefillshare.bench.modules import make_module
from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.deployment.checks import check
from prefillshare.deployment.local import LocalDeployment, visibly
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.engine.version import vllm_distribution
from prefillshare.errors import UserError
from prefillshare.router_config import FlowConfig, RouterConfig

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "artifacts" / "overload"
RESULTS = ROOT / "docs" / "results" / "overload.json"
PAGE = ROOT / "docs" / "overload.md"
OVERLOAD = 5
CLOSED, AT_CAPACITY, OVER = "closed loop", "1x", f"{OVERLOAD}x"
MAX_NUM_SEQS = 16
_REST_S = 1.0  # between phases


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="of all three phases (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of short phases: writes to artifacts/ only")
    parser.add_argument(
        "--queue-share", type=float, help="router.flow.queue_share, to compare: writes to artifacts/ only"
    )
    parser.add_argument("--first-port", type=int, default=8400, help="of five on 127.0.0.1 (default: %(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 12.0
    sys.exit(asyncio.run(run(options, Console(width=None if sys.stdout.isatty() else 120))))


async def run(options: argparse.Namespace, console: Console) -> int:
    """Returns the exit code. Whatever ends it, no process is left behind."""
    running: list[LocalDeployment] = []

    def kill() -> None:
        for system in running:
            system.kill()

    with StopSignals(on_first=partial(say_stopping, console), kill=kill) as signals:
        try:
            options.load = await load_when_quiet(console)
            local = _prepare(options, console)
            running.append(local)
            rounds = await _measure(local, options, console)
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped; nothing was written")
            return signals.exit_code
        except UserError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 2
        except (StartupFailed, MeasurementFailed, aiohttp.ClientError, TimeoutError, ValueError) as error:
            console.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            console.print(f"the workers' logs are in {SCRATCH / 'logs'}", markup=False, soft_wrap=True)
            return 1
    _write(local, rounds, options, console)
    return 0


def _prepare(options: argparse.Namespace, console: Console) -> LocalDeployment:
    base = prepare_base(ROOT / "artifacts" / "base")
    make_module(base, SCRATCH / "module", name=MODULE, base_name=BASE)
    cores = sorted(os.sched_getaffinity(0))
    flow = FlowConfig() if options.queue_share is None else FlowConfig(queue_share=options.queue_share)
    deployment = Deployment(
        bases=(BaseConfig(path=base, name=BASE),),
        modules=(ModuleConfig(name=MODULE, path=SCRATCH / "module"),),
        workers=WorkerConfig(
            first_port=options.first_port + 1,
            first_side_channel_port=options.first_port + 3,
            cores=(cores[0], cores[-1]),
            max_model_len=1024,
            max_num_seqs=MAX_NUM_SEQS,
        ),
        router=RouterConfig(port=options.first_port, flow=flow),
        log_dir=SCRATCH / "logs",
    )
    for warning in check(deployment).warnings:
        console.print(f"warning: {warning.subject}: {warning.detail}", style="yellow", markup=False)
    return LocalDeployment(deployment)


async def _measure(local: LocalDeployment, options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """By round: the answers of every phase, by its name."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # an idle connection may be closed as it is used again
    async with aiohttp.ClientSession(connector=connector) as http, visibly(local, console):
        clients = Clients(http, local.url, MODULE, seed=0)
        await clients.closed(2, 2.0)  # the first handoff shakes hands
        rounds = []
        with Progress(console=console) as progress:
            task = progress.add_task("rounds", total=options.rounds * 3)
            for number in range(options.rounds):
                factors = (1, OVERLOAD) if number % 2 == 0 else (OVERLOAD, 1)  # so that drift meets both
                rounds.append(await _round(clients, factors, options.seconds, partial(progress.advance, task)))
        with console.status("stopping the workers"):
            await local.stop()
    return rounds


async def _round(
    clients: Clients, factors: Sequence[int], seconds: float, advance: Callable[[], None]
) -> dict[str, list[Answer]]:
    """The closed loop, then calls that arrive at so many times its rate."""
    closed = await clients.closed(MAX_NUM_SEQS, seconds)
    capacity = figures(closed, seconds, seconds / 4)["answered_per_s"]
    found = {CLOSED: closed}
    advance()
    for factor in factors:
        await asyncio.sleep(_REST_S)
        found[f"{factor}x"] = await clients.open(factor * capacity, seconds)
        advance()
    return {name: found[name] for name in (CLOSED, AT_CAPACITY, OVER)}


def _write(
    local: LocalDeployment, rounds: list[dict[str, list[Answer]]], options: argparse.Namespace, console: Console
) -> None:
    found = [
        {name: figures(answers, options.seconds, options.seconds / 4) for name, answers in one.items()}
        for one in rounds
    ]
    text = table(found)
    public = not options.quick and options.queue_share is None
    file = RESULTS if public else SCRATCH / "overload.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"environment": _environment(local, options), "rounds": found}
    file.write_text(json.dumps(result, indent=1) + "\n")
    calls = [{name: as_json(answers) for name, answers in one.items()} for one in rounds]
    (SCRATCH / "calls.json").write_text(json.dumps(calls) + "\n")
    _draw(rounds, found, options.seconds, file.with_suffix(".png"))
    if public:
        write_section(PAGE, START, text)
    console.print(f"\n{text}\n\nfigures: {os.path.relpath(file)}", markup=False, highlight=False, soft_wrap=True)


def _draw(rounds: list[dict[str, list[Answer]]], found: list[dict[str, Figures]], seconds: float, file: Path) -> None:
    phases = (AT_CAPACITY, OVER)
    times = {
        phase: [a.seconds for one in rounds for a in one[phase] if a.status == 200 and a.sent >= seconds / 4]
        for phase in phases
    }

    def mean(phase: str, name: str) -> float:
        return sum(one[phase][name] for one in found) / len(found)

    rates = {
        phase: (
            mean(phase, "answered_per_s"),
            mean(phase, "arrived_per_s") * mean(phase, "refused_percent") / 100,
        )
        for phase in phases
    }
    draw(times, rates, file)


def _environment(local: LocalDeployment, options: argparse.Namespace) -> dict[str, Any]:
    spec = local.workers[0].spec
    return {
        "model": "SmolLM2-135M-Instruct",
        "dtype": spec.dtype,
        "cores": [worker.spec.core for worker in local.workers],  # of the prefill worker and of the decode worker
        "max_num_seqs": MAX_NUM_SEQS,
        "flow": local.deployment.router.flow.model_dump(),
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "seconds_a_phase": options.seconds,
        "load_before": round(options.load, 2),
        **vllm_distribution(),
        **versions("nixl", "torch"),
    }


if __name__ == "__main__":
    main()
