import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from starlette.types import ASGIApp

from prefillshare.router.errors import worker_failed
from prefillshare.router.fleet import Fleet
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.health.monitor import HealthMonitor
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import HealthConfig
from tests.router.fakes import FakeWorker, Served, decode_worker, prefill_worker, wait_for

OFTEN = HealthConfig(poll_every_s=0.01)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def monitor_of(
    http: aiohttp.ClientSession, pool: Pool, settings: HealthConfig = OFTEN, breaker: Breaker | None = None
) -> HealthMonitor:
    route = ModelRoute("base", pool, Pool("decode/sql", [decode_worker()]))
    return HealthMonitor(http, Fleet({"sql": route}), settings, breaker or Breaker(5))


async def test_a_worker_is_up_while_its_health_check_passes(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]
) -> None:
    fake = FakeWorker("base")
    server = serve(fake.app())
    worker = prefill_worker(url=server.url)
    pool = Pool("prefill", [worker])
    monitor = monitor_of(http, pool)
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


async def test_it_keeps_watching_also_who_joins_later(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]
) -> None:
    fakes = [FakeWorker("base", healthy=False), FakeWorker("base", healthy=False)]
    first, second = (prefill_worker(f"prefill-{n}", serve(fake.app()).url) for n, fake in enumerate(fakes))
    pool = Pool("prefill", [first])
    watching = asyncio.create_task(monitor_of(http, pool).run())
    try:
        for healthy in (True, False, True):
            fakes[0].healthy = healthy
            await asyncio.to_thread(wait_for, lambda expected=healthy: pool.is_up(first) == expected)
        pool.add(second)
        fakes[1].healthy = True
        await asyncio.to_thread(wait_for, lambda: pool.is_up(second))
        pool.remove(second)
        fakes[0].healthy = False
        await asyncio.to_thread(wait_for, lambda: not pool.is_up(first))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_prefill_workers_are_watched_while_their_base_has_no_module(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]
) -> None:
    fakes = [FakeWorker("base"), FakeWorker("base")]
    first, second = (prefill_worker(f"prefill-{n}", serve(fake.app()).url) for n, fake in enumerate(fakes))
    pool = Pool("prefill", [first])
    fleet = Fleet({"sql": ModelRoute("base", pool, Pool("decode/sql", [decode_worker()]))})
    monitor = HealthMonitor(http, fleet, OFTEN, Breaker(5))
    watching = asyncio.create_task(monitor.run())
    try:
        await asyncio.to_thread(wait_for, lambda: pool.is_up(first))
        fleet.remove_module("sql")
        fakes[0].healthy = False
        fleet.add_worker(pool, second)
        await asyncio.to_thread(wait_for, lambda: pool.up() == [second])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    fakes[0].healthy = True
    await monitor.check_all()
    assert pool.up() == [first, second]


async def test_a_worker_whose_breaker_opens_is_asked_for_a_token_at_once(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]
) -> None:
    worker = prefill_worker(url=serve(FakeWorker("base").app()).url)
    pool, breaker = Pool("prefill", [worker]), Breaker(1)
    monitor = monitor_of(http, pool, HealthConfig(poll_every_s=60.0), breaker)
    watching = asyncio.create_task(monitor.run())
    try:
        await asyncio.to_thread(wait_for, lambda: pool.is_up(worker))
        breaker.failed(pool, worker, worker_failed("prefill-0", "answered 500"))
        assert not pool.is_up(worker)
        await asyncio.to_thread(wait_for, lambda: pool.is_up(worker), 5.0)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_worker_that_left_may_join_again(
    http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]
) -> None:
    worker = prefill_worker(url=serve(FakeWorker("base").app()).url)
    pool = Pool("prefill", [])
    watching = asyncio.create_task(monitor_of(http, pool, HealthConfig(poll_every_s=0.02)).run())
    try:
        for pause_s in (0.1, 0.0, 0.1):
            pool.add(worker)
            await asyncio.to_thread(wait_for, lambda: pool.is_up(worker))
            pool.remove(worker)
            await asyncio.sleep(pause_s)
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
