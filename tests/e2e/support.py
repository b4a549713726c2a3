"""Real workers for tests: started from a WorkerSpec, called over HTTP as the router calls them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from prefillshare.engine.command import worker_command, worker_environment
from prefillshare.engine.worker import WorkerSpec
from prefillshare.urls import http_url

STARTUP_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 120.0

# Each new client of httpx reads the machine's certificates, which takes longer than most of these requests. Workers are
# killed and come back on the same port, so that no connection outlives its request.
_HTTP = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

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


class Fleet:
    """Worker processes by the names of their specs. Leaving the context kills what still runs."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.kill(name)

    @property
    def pids(self) -> dict[str, int]:
        """Of the API servers, which lead their process groups."""
        return {name: process.pid for name, process in self._processes.items()}

    def start(self, *specs: WorkerSpec) -> None:
        """Starts those that do not run, together, and returns when they are healthy.

        Raises:
            RuntimeError: a worker exited or did not become healthy; the message holds the end of its log.
        """
        missing = [spec for spec in specs if spec.name not in self._processes]
        for spec in missing:
            with self._log(spec).open("ab") as log:
                self._processes[spec.name] = subprocess.Popen(
                    worker_command(spec),
                    env=os.environ | worker_environment(spec),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        for spec in missing:
            while not healthy(spec):
                if self._processes[spec.name].poll() is not None or time.monotonic() > deadline:
                    log_end = self._log(spec).read_text(errors="replace")[-5000:]
                    raise RuntimeError(f"worker {spec.name} did not become healthy:\n{log_end}")
                time.sleep(0.2)

    def kill(self, name: str) -> None:
        """Ends the whole process group at once, without a chance to say goodbye."""
        process = self._processes.pop(name)
        # The group outlives its leader: vLLM's engine core does not notice the death of its API server.
        with suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Inside, the worker exists and does nothing: its sockets take what is sent to them. It may be killed there."""
        group = self._processes[name].pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            if name in self._processes:
                os.killpg(group, signal.SIGCONT)

    def _log(self, spec: WorkerSpec) -> Path:
        return self._log_dir / f"{spec.name}.log"


@contextmanager
def running(specs: list[WorkerSpec], log_dir: Path) -> Iterator[dict[str, int]]:
    """The workers, healthy, as pids by name; at the end they are killed. Raises as `Fleet.start`."""
    with Fleet(log_dir) as fleet:
        fleet.start(*specs)
        yield fleet.pids


def healthy(spec: WorkerSpec) -> bool:
    try:
        return _HTTP.get(f"{url(spec)}/health", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def url(spec: WorkerSpec) -> str:
    return http_url(spec.host, spec.port)


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
    """The worker's answer to `completion`."""
    body = completion(spec, prompt_ids, **fields)
    return _HTTP.post(f"{url(spec)}/v1/completions", json=body, headers=key_of(spec), timeout=REQUEST_TIMEOUT_S)


def completion(spec: WorkerSpec, prompt_ids: list[int], **fields: Any) -> dict[str, Any]:
    """A greedy completion of a prompt given as token ids, which runs on past the end-of-sequence token.

    By the worker's first model, unless `fields` name another as `model`.
    """
    return {
        "model": spec.served_names[0],
        "prompt": prompt_ids,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }


def key_of(spec: WorkerSpec) -> dict[str, str]:
    """The header without which a worker serves nobody."""
    return {"authorization": f"Bearer {spec.worker_key}"}


def metrics(spec: WorkerSpec) -> list[Sample]:
    """All samples of the worker's Prometheus metrics."""
    return samples(url(spec))


def metric(spec: WorkerSpec, name: str) -> float:
    """A metric of the worker now, summed over its labels.

    Raises:
        KeyError: the worker does not report it.
    """
    values = [sample.value for sample in metrics(spec) if sample.name == name]
    if not values:
        raise KeyError(f"{spec.name} reports no {name}")
    return sum(values)


def samples(server: str) -> list[Sample]:
    """All samples of what a worker or a router says under /metrics."""
    text = _HTTP.get(f"{server}/metrics", timeout=REQUEST_TIMEOUT_S).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
