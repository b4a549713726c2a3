"""A worker that hangs is found down, whatever its clients do, by a clock that jumps: an hour takes a second."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from prefillshare.router import pool as pool_module
from prefillshare.router.errors import RouterError
from prefillshare.router.fleet import Fleet
from prefillshare.router.health import watcher
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.health.monitor import HealthMonitor
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute
from prefillshare.router.while_up import while_up
from prefillshare.router_config import HealthConfig
from tests.router.clocks import in_jumping_time
from tests.router.fakes import decode_worker, prefill_worker

HOUR_S = 3600.0
SETTINGS = HealthConfig()


class Silent:
    """In the place of an HTTP session. Of the worker nothing answers, or its HTTP server alone."""

    def __init__(self, *, serves: bool) -> None:
        self._serves = serves

    def get(self, url: str, timeout: aiohttp.ClientTimeout) -> AbstractAsyncContextManager["Silent"]:
        return self._answer(timeout.total, here=self._serves)

    def post(self, url: str, **request: Any) -> AbstractAsyncContextManager["Silent"]:
        return self._answer(None, here=False)

    @asynccontextmanager
    async def _answer(self, timeout_s: float | None, *, here: bool) -> AsyncIterator["Silent"]:
        async with asyncio.timeout(timeout_s):
            if not here:
                await asyncio.Event().wait()
            yield self

    status = 200

    async def text(self) -> str:
        return "vllm:num_requests_running 1\n"


async def seconds_until_down(http: Silent, timeout_s: float, gap_s: float) -> float:
    """For a client that waits `timeout_s` for its answer and, `gap_s` after it has given up, asks again."""
    now = asyncio.get_running_loop().time
    worker = prefill_worker("p")
    pool = Pool("prefill", [worker])
    pool.mark_up(worker)
    pool.heard(worker)
    fleet = Fleet({"sql": ModelRoute("base", pool, Pool("decode/sql", [decode_worker()]))})
    monitor = HealthMonitor(http, fleet, SETTINGS, Breaker(5))  # type: ignore[arg-type]
    watching = asyncio.create_task(monitor.run())
    while pool.is_up(worker) and now() < HOUR_S:
        with suppress(TimeoutError, RouterError):
            async with asyncio.timeout(timeout_s):
                with pool.lease(worker):
                    async with while_up(pool, worker) as on_worker:
                        pool.wait_for(worker, on_worker)
                        await asyncio.Event().wait()
        if pool.is_up(worker):
            await asyncio.sleep(gap_s)
    seconds = now()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return seconds


CLIENTS = [(0.5, 0.01), (5, 0.1), (5, 1), (9, 2), (10, 2.1), (15, 3), (19, 8), (600, 1)]


@pytest.mark.parametrize(("timeout_s", "gap_s"), CLIENTS)
@pytest.mark.parametrize("serves", [True, False], ids=["its engine hangs", "it is stopped"])
def test_clients_that_give_up_do_not_keep_a_hung_worker_up(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, gap_s: float, serves: bool
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        clock = type("LoopClock", (), {"monotonic": staticmethod(loop.time), "time": staticmethod(loop.time)})
        for module in (pool_module, watcher):
            monkeypatch.setattr(module, "time", clock)
        seconds = await seconds_until_down(Silent(serves=serves), timeout_s, gap_s)
        if not serves:
            assert seconds <= SETTINGS.silent_after_s + 2 + SETTINGS.poll_every_s
        elif timeout_s > SETTINGS.stalled_after_s or gap_s < SETTINGS.poll_every_s:
            assert seconds <= SETTINGS.stalled_after_s + 3 * SETTINGS.poll_every_s
        else:  # it is asked for a token once nobody waits for it
            idle_s = 1.2 * SETTINGS.token_every_s + SETTINGS.token_timeout_s + 3 * SETTINGS.poll_every_s
            assert seconds <= idle_s + timeout_s

    in_jumping_time(run())
