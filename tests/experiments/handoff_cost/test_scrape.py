import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from experiments.handoff_cost import scrape
from experiments.handoff_cost.client import MeasurementFailed, open_client
from prefillshare.bench.scrape import totals
from tests.bench.test_scrape import TEXT


async def counted(*counts: int) -> dict[str, float]:
    """What growth_by_one_request makes of a worker that reports these counts one after the other, from 3 on."""
    reports = iter(counts)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=TEXT.replace('_count{engine="0"} 3.0', f'_count{{engine="0"}} {next(reports)}'))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server, open_client("a worker key") as http:
        url = str(server.make_url("")).rstrip("/")
        return await scrape.growth_by_one_request(http, url, totals(TEXT))


async def test_it_waits_until_the_request_is_counted() -> None:
    grown = await counted(3, 3, 4)
    assert grown["vllm:request_queue_time_seconds_count"] == 1


async def test_somebody_elses_requests_spoil_the_measurement() -> None:
    with pytest.raises(MeasurementFailed, match="counted 2 requests"):
        await counted(3, 5)


async def test_a_request_that_is_never_counted_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "_PATIENCE_S", 0.0)
    with pytest.raises(MeasurementFailed, match="counted 0 requests"):
        await counted(3, 3)
