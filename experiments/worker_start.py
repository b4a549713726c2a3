"""What a worker's start costs, with an engine that is forked and one that vLLM spawns.

    python -m experiments.worker_start

Starts a prefill worker in turns, until it answers, and ends it. Writes docs/results/worker-start.json and prints the
medians, their ranges and the ratios. On a machine of two cores it takes about five minutes; timings are worth
something on a machine that does nothing else.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
from rich.progress import track

from examples.demo.prepare_base import prepare_base
from prefillshare.bench.environment import kind_of_machine
from prefillshare.bench.report import with_spread
from prefillshare.bench.systems import Machine, plan
from prefillshare.deployment.guard import Guard
from prefillshare.deployment.ports import require_free_ports
from prefillshare.deployment.supervision import StartupFailed, Timing, WorkerProcess
from prefillshare.engine.command import METHOD_VARIABLE
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.errors import UserError

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "docs" / "results" / "worker-start.json"
METHODS = ("spawn", "fork")
FIGURES = {"wall_s": "until it answers, s", "cpu_s": "time of a core, s", "memory_mb": "memory of its processes, MB"}
_LONGEST_S = 600.0
_TIMING = Timing(probe_every=0.05, grace=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often a worker is started each way (default 5)")
    rounds = parser.parse_args().rounds
    base = prepare_base(REPOSITORY / "artifacts" / "base")
    with tempfile.TemporaryDirectory() as folder:
        (prefill, *_) = plan_workers(plan("shared", 1, base, Path(folder), Machine()))
    spec = replace(prefill, core=None)  # all of the machine's
    try:
        require_free_ports(spec)
        start(spec, METHODS[0])  # the first reads everything from the disk
        turns = [method for _ in range(rounds) for method in METHODS]
        records = [{"method": method, **start(spec, method)} for method in track(turns, description="worker starts")]
    except (UserError, StartupFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    about = kind_of_machine(spec.dtype) | {"kv_cache_gib": spec.kv_cache_gib}
    RESULTS.write_text(json.dumps({"environment": about, "records": records}, indent=1) + "\n")
    print(table(records))
    return 0


def start(spec: WorkerSpec, method: str) -> dict[str, float]:
    """Starts the worker, waits until it is healthy, reads what it has used, and ends it.

    Memory is the proportional set size: what processes share counts once.

    Raises:
        StartupFailed: it ended or did not become healthy; the message has the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_start(spec, method, Path(folder) / "worker.log"))


async def _start(spec: WorkerSpec, method: str, log: Path) -> dict[str, float]:
    guard = Guard()
    guard.start()
    worker = WorkerProcess(
        spec,
        log=log,
        environment={**os.environ, METHOD_VARIABLE: method},
        startup_timeout_s=_LONGEST_S,
        timing=_TIMING,
        guard=guard,
        starting=asyncio.Semaphore(1),
        report=lambda event: None,
    )
    begun = monotonic()
    tasks = living, _ = asyncio.create_task(worker.live()), asyncio.create_task(worker.ready.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        wall_s = monotonic() - begun
        leader = psutil.Process(worker.pid)
        family = [leader, *leader.children(recursive=True)]
        times = [each.cpu_times() for each in family]
        return {
            "wall_s": wall_s,
            "cpu_s": sum(each.user + each.system for each in times),
            "memory_mb": sum(each.memory_full_info().pss for each in family) / 1e6,
            "processes": len(family),
        }
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        guard.stop()


def table(records: Sequence[dict[str, Any]]) -> str:
    """Medians and ranges of the starts; ratios are those of neighbouring starts."""
    lines = [f"| | {' | '.join(METHODS)} | {METHODS[1]} : {METHODS[0]} |", "|---|---|---|---|"]
    for name, title in FIGURES.items():
        one, two = ([record[name] for record in records if record["method"] == method] for method in METHODS)
        ratios = [after / before for before, after in zip(one, two, strict=True)]
        cells = [with_spread(one, 1), with_spread(two, 1), with_spread(ratios, 2)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
