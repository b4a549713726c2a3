import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from prefillshare.router.drain import DRAINING, Drain
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


async def test_calls_that_are_broken_off_end_with_a_503() -> None:
    drain = Drain()

    async def call() -> None:
        with drain.call():
            await asyncio.sleep(30)

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()  # its client has left
    await asyncio.sleep(0)
    assert drain.break_off() == 2
    left, *broken = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    assert [(error.status, error.code) for error in broken if isinstance(error, RouterError)] == 2 * [(503, "draining")]
    assert drain.break_off() == drain.in_flight == 0


class Reachable(Drain):
    """Of a router in another thread."""

    @contextmanager
    def call(self) -> Iterator[None]:
        self.loop = asyncio.get_running_loop()
        with super().call():
            yield

    def stop(self) -> None:
        self.begin()
        self.loop.call_soon_threadsafe(self.break_off)


@pytest.mark.parametrize("fields", [{}, {"n": 2}], ids=["one answer", "two answers"])
def test_a_call_that_is_broken_off_is_told_so_and_counted(
    start_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, "prefillshare.router")
    drain = Reachable()
    cluster = start_cluster(drain=drain)
    held = cluster.decode["sql"][0]
    held.behaviour = "held"
    with meanwhile(cluster, {"model": "sql", "prompt": "hello"} | fields) as call:
        wait_for(lambda: held.bodies)
        drain.stop()
        answer = call.result()
    held.behaviour = "ok"
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
    assert_counted_as_broken_off(cluster, drain, caplog)


def test_a_stream_that_is_broken_off_ends_with_an_error(
    start_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefillshare.router")
    drain = Reachable()
    cluster = start_cluster(drain=drain)
    pause = cluster.decode["sql"][0].pause = threading.Event()
    body = {"model": "sql", "prompt": "hello", "stream": True}
    with cluster.http.stream("POST", "/v1/completions", json=body) as response:
        events = response.iter_lines()
        assert "sql" in next(events)
        drain.stop()
        last = [line for line in events if line][-1]
    pause.set()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    assert_counted_as_broken_off(cluster, drain, caplog)


def assert_counted_as_broken_off(cluster: Cluster, drain: Drain, caplog: pytest.LogCaptureFixture) -> None:
    """And not as if its client had left."""
    wait_for(lambda: drain.in_flight == 0)
    wait_for(lambda: any("status=503 reason=draining" in line for line in caplog.messages))
    metrics = cluster.http.get("/metrics").text
    assert 'prefillshare_requests_total{model="sql",status="503"} 1.0' in metrics
    assert 'prefillshare_errors_total{code="draining",model="sql"} 1.0' in metrics
    assert 'prefillshare_leg_failures_total{code="draining",leg="decode",worker="sql-0"}' in metrics
    assert "client_left" not in metrics


class Late(Drain):
    """Breaks calls off when their answers have just been sent."""

    @contextmanager
    def call(self) -> Iterator[None]:
        with super().call():
            yield
            raise asyncio.CancelledError(DRAINING)


def test_an_answer_that_was_sent_stands(
    start_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = start_cluster(drain=Late())
    assert cluster.http.post("/v1/completions", json={"model": "sql", "prompt": "hello"}).status_code == 200
    wait_for(lambda: "prefillshare_in_flight_requests 0.0" in cluster.http.get("/metrics").text)
    metrics = cluster.http.get("/metrics").text
    assert 'prefillshare_requests_total{model="sql",status="200"} 1.0' in metrics
    assert 'code="draining"' not in metrics
    assert not caplog.messages


@contextmanager
def meanwhile(cluster: Cluster, body: dict[str, Any]) -> Iterator[Future[httpx.Response]]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(cluster.http.post, "/v1/completions", json=body)


def test_a_prefill_that_is_broken_off_is_counted_so(start_cluster: Callable[..., Cluster]) -> None:
    drain = Reachable()
    cluster = start_cluster(prefill=2, drain=drain, router={"retry": {"hedge_after_s": 0.05}})
    for worker in cluster.prefill:
        worker.behaviour = "held"
    with meanwhile(cluster, {"model": "sql", "prompt": "hello"}) as answer:
        wait_for(lambda: all(worker.bodies for worker in cluster.prefill))
        drain.stop()
        assert answer.result().json()["error"]["code"] == "draining"
    for worker in cluster.prefill:
        worker.behaviour = "ok"
    metrics = cluster.http.get("/metrics").text
    for name in ("prefill-0", "prefill-1"):
        assert f'prefillshare_leg_failures_total{{code="draining",leg="prefill",worker="{name}"}} 1.0' in metrics
