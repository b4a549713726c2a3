import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from experiments.handoff_cost import scrape
from experiments.handoff_cost.client import MeasurementFailed, open_client

TEXT = """# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="1.0"} 3.0
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf"} 3.0
vllm:request_queue_time_seconds_count{engine="0"} 3.0
vllm:request_queue_time_seconds_sum{engine="0"} 0.75
# TYPE prefillshare_handoff_refusals counter
prefillshare_handoff_refusals_total{reason="no_handoff"} 2.0
prefillshare_handoff_refusals_total{reason="pull_failed"} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 1.0
"""


def test_totals_are_summed_over_labels_and_leave_out_gauges_and_buckets() -> None:
    assert scrape.totals(TEXT) == {
        "vllm:request_queue_time_seconds_count": 3.0,
        "vllm:request_queue_time_seconds_sum": 0.75,
        "prefillshare_handoff_refusals_total": 3.0,
    }


def test_a_total_that_is_new_has_grown_from_nothing() -> None:
    assert scrape.growth({"a_sum": 1.0}, {"a_sum": 1.5, "b_sum": 2.0}) == {"a_sum": 0.5, "b_sum": 2.0}


async def counted(*counts: int) -> dict[str, float]:
    """What growth_by_one_request makes of a worker that reports these counts one after the other, from 3 on."""
    reports = iter(counts)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=TEXT.replace('_count{engine="0"} 3.0', f'_count{{engine="0"}} {next(reports)}'))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server, open_client("a worker key") as http:
        url = str(server.make_url("")).rstrip("/")
        return await scrape.growth_by_one_request(http, url, scrape.totals(TEXT))


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
