"""What eager extension gains and costs: the same workers behind a router with it and a router without.

    python -m experiments.extension

Starts a deployment with one decode module, plays sessions through both routers in turns and stops everything. Writes
docs/results/extension.json and the table of docs/extension.md. Takes about five minutes; timings are worth something on
a machine that does nothing else.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from rich.console import Console
from rich.progress import Progress

from examples.demo.prepare_base import prepare_base
from experiments.environment import load_when_quiet, versions
from experiments.extension.report import START, table
from experiments.extension.sessions import CONTEXT_WORDS, NEW_WORDS, PLANS, THINK_S, measure
from experiments.handoff_cost.client import MeasurementFailed, open_client
from experiments.handoff_cost.scrape import growth
from experiments.handoff_cost.systems import BASE, MODULE, plan
from experiments.section import write_section
from prefillshare.bench.modules import make_module
from prefillshare.bench.scrape import scrape
from prefillshare.deployment.local import LocalDeployment, routes, visibly, worker_facts
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.engine.version import vllm_distribution
from prefillshare.errors import UserError
from prefillshare.router.app import create_app

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "artifacts" / "extension"
RESULTS = ROOT / "docs" / "results" / "extension.json"
PAGE = ROOT / "docs" / "extension.md"
_PATIENCE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.extension",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--first-port", type=int, default=8300, help="of six on 127.0.0.1 (default: %(default)s)")
    options = parser.parse_args()
    sys.exit(asyncio.run(run(options.first_port, Console(width=None if sys.stdout.isatty() else 120))))


async def run(first_port: int, console: Console) -> int:
    """Returns the exit code. Whatever ends it, no process is left behind."""
    base = prepare_base(ROOT / "artifacts" / "base")
    make_module(base, SCRATCH / "module", name=MODULE, base_name=BASE)
    deployment = plan(base, SCRATCH / "module", SCRATCH / "logs", first_port)
    extending = deployment.router.model_copy(update={"extension": "auto"})
    local = LocalDeployment(deployment.model_copy(update={"router": extending}))
    with StopSignals(on_first=partial(say_stopping, console), kill=local.kill) as signals:
        try:
            result = await _measure(local, first_port + 3, console)
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped; nothing was written")
            return signals.exit_code
        except (StartupFailed, MeasurementFailed, UserError, aiohttp.ClientError, TimeoutError) as error:
            console.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    write_section(PAGE, START, table(result["plans"]))
    console.print(f"\n{table(result['plans'])}", markup=False, highlight=False, soft_wrap=True)
    return 0


async def _measure(local: LocalDeployment, port: int, console: Console) -> dict[str, Any]:
    load = await load_when_quiet(console)
    worker_key = local.workers[0].spec.worker_key
    async with open_client(worker_key) as http, visibly(local, console), _router_beside(local, port) as off:
        found = []
        with Progress(console=console) as progress:
            for each in PLANS:
                rounds = 2 * (each.rounds + (each.at_once == 1))
                step = partial(progress.advance, progress.add_task(f"{each.name}, {each.answer}", total=rounds))
                before = await scrape(http, local.url)
                records = await measure(http, {"off": off, "auto": local.url}, each, step)
                extension = growth(before, await scrape(http, local.url))
                found.append({"records": records, "extension": _counted(extension)})
        await _require_no_blocks_held(http, local.workers[0].url)
    return {"environment": _environment(local, load), "plans": found}


@asynccontextmanager
async def _router_beside(local: LocalDeployment, port: int) -> AsyncIterator[str]:
    """Another router over the same workers, without extension."""
    specs = [worker.spec for worker in local.workers]
    app = create_app(
        local.deployment.router.model_copy(update={"port": port, "extension": "off"}),
        routes(local.deployment, specs),
        worker_facts(specs[0]),
    )
    server = _Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.05)
            if serving.done():
                serving.result()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: stopping is this command's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _counted(grown: dict[str, float]) -> dict[str, int]:
    """Tokens, with those of the round that is not recorded."""
    return {
        kind: round(grown.get(f"prefillshare_extension_{kind}_tokens_total", 0))
        for kind in ("computed", "hit", "wasted")
    }


async def _require_no_blocks_held(http: aiohttp.ClientSession, url: str) -> None:
    """Extensions must leave nothing but cached blocks on the prefill worker, which count as free.

    Raises:
        MeasurementFailed: it still holds blocks, a while after the last call.
    """
    for _ in range(round(_PATIENCE_S)):
        async with http.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()
        used = [line for line in lines if line.startswith("vllm:kv_cache_usage_perc{")]
        if used and float(used[0].rpartition(" ")[2]) == 0:
            return
        await asyncio.sleep(1)
    raise MeasurementFailed(f"{url} holds blocks for nobody: {used}")


def _environment(local: LocalDeployment, load: float) -> dict[str, Any]:
    spec = local.workers[0].spec
    return {
        "model": "SmolLM2-135M-Instruct",
        "dtype": spec.dtype,
        "block_size": spec.block_size,
        "cores": [worker.spec.core for worker in local.workers],
        "load_before": round(load, 2),
        "context_words": CONTEXT_WORDS,
        "new_words": NEW_WORDS,
        "think_s": THINK_S,
        **vllm_distribution(),
        **versions("nixl", "torch"),
    }


if __name__ == "__main__":
    main()
