import asyncio
import json
import threading
from collections.abc import Callable

import pytest

from prefillshare.router.drain import Drain
from prefillshare.router.errors import RouterError
from tests.router.conftest import Cluster
from tests.router.fakes import wait_for


async def test_it_waits_for_the_calls_in_flight_and_takes_no_more() -> None:
    drain = Drain()
    with drain.call():
        drain.begin()
        with pytest.raises(RouterError) as refused, drain.call():
            pass
        assert (refused.value.status, refused.value.code) == (503, "draining")
        assert refused.value.headers["retry-after"] == "1"
        assert drain.in_flight == 1
        waiting = asyncio.create_task(drain.finished(5.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    assert await waiting
    assert await drain.finished(0)


async def test_it_waits_no_longer_than_it_may_or_is_told() -> None:
    drain = Drain()
    with drain.call():
        assert not await drain.finished(0.05)
        drain.give_up()
        assert not await asyncio.wait_for(drain.finished(60.0), 1.0)


def test_a_router_that_is_drained_finishes_its_stream_and_sends_new_calls_away(
    start_cluster: Callable[..., Cluster],
) -> None:
    drain = Drain()
    cluster = start_cluster(drain=drain)
    cluster.decode["sql"][0].pause = threading.Event()
    body = {"model": "sql", "prompt": "hello", "stream": True}
    assert cluster.http.get("/health").json()["status"] == "ok"
    with cluster.http.stream("POST", "/v1/completions", json=body) as response:
        events = response.iter_lines()
        assert "sql" in next(events)
        drain.begin()
        refused = cluster.http.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        health = cluster.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert drain.in_flight == 1
        cluster.decode["sql"][0].pause.set()
        lines = list(events)
    assert lines[-2] == "data: [DONE]"
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-2] if line.startswith("data: {"))
    assert text == " read hello"
    wait_for(lambda: drain.in_flight == 0)
    metrics = cluster.http.get("/metrics").text
    assert 'prefillshare_errors_total{code="draining",model="unknown"} 1.0' in metrics
