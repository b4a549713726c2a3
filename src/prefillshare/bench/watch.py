"""What the workers did during a run: tokens computed and found, KV in use, bytes moved, processor time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import psutil

from prefillshare.bench.host import Hosted, HostedWorker
from prefillshare.bench.scrape import fetch, gauges, growth, totals

_EVERY_S = 1.0
_IDLE_EVERY_S = 0.25
_KV_USAGE = "vllm:kv_cache_usage_perc"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"


@dataclass(slots=True)
class WorkerUse:
    """Of one worker, over a run. Peaks are of samples a second apart; `cpu_s` is of its engine, which is on `core`, or
    on all that the system has where that is None; `server_cpu_s` of its API server, which is on none.

    `queried_tokens` and `hit_tokens` are the prefix cache's, `computed_tokens` what it had to compute of prompts. Those
    of a decode worker tell nothing about prefill: it counts what it pulled.
    """

    name: str
    role: str
    core: int | None
    cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    queried_tokens: float = 0.0
    hit_tokens: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    pulled_tokens: float = 0.0
    pulled_bytes: float = 0.0
    preemptions: float = 0.0
    peak_kv_tokens: float = 0.0
    peak_running: float = 0.0
    peak_waiting: float = 0.0


@dataclass(slots=True)
class Use:
    """Of all workers. `router_cpu_s` is of the process that hosts the system: the router, if it has one.

    `peak_kv_tokens` is the most that was in use on all of them at one time, which is less than the sum of their peaks.
    """

    seconds: float = 0.0
    workers: list[WorkerUse] = field(default_factory=list)
    peak_kv_tokens: float = 0.0
    router_cpu_s: float = 0.0
    driver_cpu_s: float = 0.0


_TOTALS = {
    "queried_tokens": "vllm:prefix_cache_queries_total",
    "hit_tokens": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "pulled_tokens": "prefillshare_handoff_pulled_tokens_total",
    "pulled_bytes": "prefillshare_handoff_pulled_bytes_total",
    "preemptions": "vllm:num_preemptions_total",
}


@dataclass(frozen=True, slots=True)
class Idle:
    """How long it took until no worker had anything to do. `requests` are those that some had when it was given up."""

    waited_s: float
    requests: float


async def until_idle(http: aiohttp.ClientSession, workers: Sequence[HostedWorker], bound_s: float = 60.0) -> Idle:
    """Waits until no request is under way: those whose client has left go on until their worker hears of it.

    Raises:
        aiohttp.ClientError: a worker does not answer.
    """
    began, idle = perf_counter(), 0
    while True:
        texts = await asyncio.gather(*(fetch(http, worker.url) for worker in workers))
        requests = sum(sum(gauges(text, _RUNNING, _WAITING).values()) for text in texts)
        # Twice, since a call between its legs is on no worker.
        idle = 0 if requests else idle + 1
        waited_s = perf_counter() - began
        if idle == 2 or waited_s >= bound_s:
            return Idle(round(waited_s, 3), requests)
        await asyncio.sleep(_IDLE_EVERY_S)


@asynccontextmanager
async def watching(http: aiohttp.ClientSession, system: Hosted) -> AsyncIterator[Use]:
    """Fills in the yielded `Use` when left.

    Raises:
        aiohttp.ClientError: a worker does not answer.
        psutil.NoSuchProcess: a worker has ended; its supervisor may have started another meanwhile.
    """
    use = Use(workers=[WorkerUse(worker.name, worker.role, worker.core) for worker in system.workers])
    before = await asyncio.gather(*(fetch(http, worker.url) for worker in system.workers))
    cpu = [_cpu_s(worker.pid) for worker in system.workers]  # of server and engine
    router, driver, began = _own_cpu_s(system.pid), _own_cpu_s(None), perf_counter()
    sampler = asyncio.create_task(_sample(http, system.workers, use))
    try:
        yield use
    finally:
        sampler.cancel()
        use.seconds = perf_counter() - began
        use.router_cpu_s = _own_cpu_s(system.pid) - router
        use.driver_cpu_s = _own_cpu_s(None) - driver
        for worker, found, (server, engine) in zip(system.workers, use.workers, cpu, strict=True):
            server_now, engine_now = _cpu_s(worker.pid)
            found.server_cpu_s, found.cpu_s = server_now - server, engine_now - engine
    after = await asyncio.gather(*(fetch(http, worker.url) for worker in system.workers))
    for found, old, new in zip(use.workers, before, after, strict=True):
        grown = growth(totals(old), totals(new))
        for name, metric in _TOTALS.items():
            setattr(found, name, grown.get(metric, 0.0))


async def _sample(http: aiohttp.ClientSession, workers: list[HostedWorker], use: Use) -> None:
    while True:
        used = 0.0
        for worker, own in zip(workers, use.workers, strict=True):
            with contextlib.suppress(aiohttp.ClientError):  # a peak more or less; the totals are what must be there
                found = gauges(await fetch(http, worker.url), _KV_USAGE, _RUNNING, _WAITING)
                kv_tokens = found.get(_KV_USAGE, 0.0) * worker.kv_tokens
                used += kv_tokens
                own.peak_kv_tokens = max(own.peak_kv_tokens, kv_tokens)
                own.peak_running = max(own.peak_running, found.get(_RUNNING, 0.0))
                own.peak_waiting = max(own.peak_waiting, found.get(_WAITING, 0.0))
        use.peak_kv_tokens = max(use.peak_kv_tokens, used)
        await asyncio.sleep(_EVERY_S)


def _cpu_s(server: int) -> tuple[float, float]:
    """Processor time of an API server, and of its descendants: the engine."""
    children = psutil.Process(server).children(recursive=True)
    return _own_cpu_s(server), sum(_own_cpu_s(child.pid) for child in children)


def _own_cpu_s(pid: int | None) -> float:
    """Processor time of one process, of this one without `pid`."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
