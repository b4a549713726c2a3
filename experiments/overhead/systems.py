"""The processes of a measurement: workers that answer at once, and the routers in front of them, on cores of their own.

The routers share one core, one of them busy at a time; workers and load have the other.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from experiments.overhead.backend import HOST

DIRECT, ONE_LEG, TWO_LEGS, OURS, RUST = "direct", "one-leg", "two-legs", "ours", "vllm-router"
PAIRS = 2  # of a prefill and a decode worker
_START_S = 60.0


class NotStarted(Exception):
    """A process ended, or did not answer in time."""


class System:
    """A router that runs: where it listens and how much of its core it has used."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self._process = process

    def cpu_seconds(self) -> float:
        """Of all its threads and children so far."""
        family = psutil.Process(self._process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in [family, *family.children(recursive=True)])


class Cores:
    """Two different cores, where there are two."""

    def __init__(self) -> None:
        available = sorted(os.sched_getaffinity(0))
        self.router, self.load = available[0], available[-1]


def worker_ports(first_port: int) -> list[int]:
    """Prefill and decode ports in turns."""
    return list(range(first_port, first_port + 2 * PAIRS))


@contextmanager
def running(first_port: int, vllm_router: str | None, logs: Path) -> Iterator[list[System]]:
    """Starts workers and routers; this process goes to the workers' core. At the end all are killed.

    Raises:
        NotStarted: the message names the process and the end of its log.
    """
    cores, ports = Cores(), worker_ports(first_port)
    urls = [f"http://{HOST}:{port}" for port in ports]
    before = os.sched_getaffinity(0)
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        python = [sys.executable, "-m"]
        backend = [*python, "experiments.overhead.backend", *map(str, ports)]
        stack.enter_context(_process("workers", backend, cores.load, ports[0], logs))
        found = []
        for number, name in enumerate((ONE_LEG, TWO_LEGS, OURS, *((RUST,) if vllm_router else ()))):
            port = ports[-1] + 1 + number
            command = (
                _rust(shlex.split(vllm_router or ""), port, urls)
                if name == RUST
                else [*python, "experiments.overhead.routers", name, str(port), *_workers(urls)]
            )
            process = stack.enter_context(_process(name, command, cores.router, port, logs))
            found.append(System(name, port, process))
        os.sched_setaffinity(0, {cores.load})
        stack.callback(os.sched_setaffinity, 0, before)
        yield found


def _workers(urls: Sequence[str]) -> list[str]:
    return ["--prefill", *urls[::2], "--decode", *urls[1::2]]


def _rust(command: Sequence[str], port: int, urls: Sequence[str]) -> list[str]:
    """vllm-router in the mode for prefill and decode workers with NIXL; sessions keep their workers, as with ours."""
    workers = [part for url in urls[::2] for part in ("--prefill", url)]
    workers += [part for url in urls[1::2] for part in ("--decode", url)]
    listen = ["--host", HOST, "--port", str(port), "--prometheus-port", str(port + 100)]
    mode = ["--vllm-pd-disaggregation", "--kv-connector", "nixl", "--policy", "consistent_hash"]
    return [*command, *mode, *workers, *listen, "--log-level", "warning"]


@contextmanager
def _process(name: str, command: Sequence[str], core: int, port: int, logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = logs / f"{name}.log"
    with log.open("wb") as output:
        pinned = ["taskset", "--cpu-list", str(core), *command]
        quiet = {**os.environ, "RUST_LOG": "warn"}  # vllm-router's --log-level does not reach its Rust part
        process = subprocess.Popen(pinned, stdout=output, stderr=output, start_new_session=True, env=quiet)
    try:
        _wait(name, process, port, log)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with suppress(URLError, OSError), urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotStarted(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
