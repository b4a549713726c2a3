"""Real workers for tests: started from a WorkerSpec, called over HTTP as the router calls them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from prefillshare.engine.worker import WorkerSpec, worker_command, worker_environment

STARTUP_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 120.0

REMOTE_DECODE = {"do_remote_decode": True, "do_remote_prefill": False}


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports on which nothing listens."""
    for first in range(20000, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError(f"no {count} consecutive free ports")


@contextmanager
def running(specs: list[WorkerSpec], log_dir: Path) -> Iterator[dict[str, int]]:
    """The workers, started together and healthy, as pids by name; at the end their process groups are killed.

    Raises:
        RuntimeError: a worker exited or did not become healthy; the message holds the end of its log.
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for spec in specs:
            with (log_dir / f"{spec.name}.log").open("wb") as log:
                processes[spec.name] = subprocess.Popen(
                    worker_command(spec),
                    env=os.environ | worker_environment(spec),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        for spec in specs:
            while not healthy(spec):
                if processes[spec.name].poll() is not None or time.monotonic() > deadline:
                    log_end = (log_dir / f"{spec.name}.log").read_text(errors="replace")[-5000:]
                    raise RuntimeError(f"worker {spec.name} did not become healthy:\n{log_end}")
                time.sleep(0.2)
        yield {name: process.pid for name, process in processes.items()}
    finally:
        for process in processes.values():
            # The group outlives its leader: vLLM's engine core does not notice the death of its API server.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def healthy(spec: WorkerSpec) -> bool:
    try:
        return httpx.get(f"{url(spec)}/health", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def url(spec: WorkerSpec) -> str:
    return f"http://{spec.host}:{spec.port}"


def prefill(spec: WorkerSpec, prompt_ids: list[int]) -> dict[str, Any]:
    """Leg 1: the response of the prefill worker, with `kv_transfer_params` for one decode worker."""
    response = complete(spec, prompt_ids, max_tokens=1, kv_transfer_params=REMOTE_DECODE)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def decode(
    spec: WorkerSpec, prompt_ids: list[int], handoff: dict[str, Any], *, max_tokens: int, **fields: Any
) -> list[int]:
    """Leg 2: the greedy tokens of the decode worker."""
    response = complete(spec, prompt_ids, max_tokens=max_tokens, kv_transfer_params=handoff, **fields)
    assert response.status_code == 200, response.text
    tokens: list[int] = response.json()["choices"][0]["token_ids"]
    return tokens


def complete(spec: WorkerSpec, prompt_ids: list[int], **fields: Any) -> httpx.Response:
    """A greedy completion of a prompt given as token ids, which runs on past the end-of-sequence token.

    By the worker's first model, unless `fields` name another as `model`.
    """
    body = {
        "model": spec.served_names[0],
        "prompt": prompt_ids,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }
    return httpx.post(f"{url(spec)}/v1/completions", json=body, timeout=REQUEST_TIMEOUT_S)


def metrics(spec: WorkerSpec) -> list[Sample]:
    """All samples of the worker's Prometheus metrics."""
    text = httpx.get(f"{url(spec)}/metrics", timeout=REQUEST_TIMEOUT_S).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
