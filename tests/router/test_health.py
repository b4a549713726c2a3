import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from starlette.types import ASGIApp

from prefillshare.router import health
from prefillshare.router.health import HealthMonitor
from prefillshare.router.pool import Pool
from tests.router.fakes import FakeWorker, Served, prefill_worker, wait_for


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_worker_is_up_while_its_health_check_passes(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]
) -> None:
    fake = FakeWorker("base")
    server = serve(fake.app())
    worker = prefill_worker(url=server.url)
    pool = Pool("prefill", [worker])
    monitor = HealthMonitor(http, [pool])
    await monitor.check_all()
    assert pool.is_up(worker)
    fake.healthy = False
    await monitor.check_all()
    assert pool.why_down() == "prefill-0: its health check answered 503"
    fake.healthy = True
    await monitor.check_all()
    assert pool.is_up(worker)
    server.stop()
    await monitor.check_all()
    assert "cannot connect" in pool.why_down()


async def test_a_worker_that_was_up_may_be_silent_for_a_while(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TIMEOUT_S", 0.05)
    fake = FakeWorker("base", behaviour="silent")
    worker = prefill_worker(url=serve(fake.app()).url)
    pool = Pool("prefill", [worker])
    monitor = HealthMonitor(http, [pool])
    await monitor.check_all()
    assert not pool.is_up(worker)  # never seen up: no credit

    monitor = HealthMonitor(http, [pool])
    pool.mark_up(worker)
    ups = []
    for _ in range(3):
        await monitor.check_all()
        ups.append(pool.is_up(worker))
    assert ups == [True, True, False]
    assert "does not answer" in pool.why_down()


async def test_it_keeps_watching(http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]) -> None:
    fake = FakeWorker("base", healthy=False)
    worker = prefill_worker(url=serve(fake.app()).url)
    pool = Pool("prefill", [worker])
    watching = asyncio.create_task(HealthMonitor(http, [pool], interval_s=0.01).run())
    try:
        for healthy in (True, False, True):
            fake.healthy = healthy
            await asyncio.to_thread(wait_for, lambda expected=healthy: pool.is_up(worker) == expected)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
