"""Limits and the queue in a whole router, one call at a time on each decode worker."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from prefillshare.router.flow import control
from prefillshare.router.placement.chunks import Chain, chain_of_request
from tests.router.conftest import Cluster
from tests.router.fakes import wait_for

BODY: dict[str, Any] = {"model": "sql", "prompt": "hello", "stream": True}
ONE_AT_A_TIME = {"flow": {"decode_calls": 1, "queue_share": 0}}


@pytest.fixture
def busy(start_cluster: Callable[..., Cluster]) -> Cluster:
    return start_cluster(router=ONE_AT_A_TIME)


class Stalled:
    """A call that runs until `leave`. Its worker answers the first word, then nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self._left = threading.Event()
        self._started = threading.Event()
        cluster.decode["sql"][0].behaviour = "stalls"
        self._thread = threading.Thread(target=self._call, args=[cluster])
        self._thread.start()
        assert self._started.wait(10)
        cluster.decode["sql"][0].behaviour = "ok"

    def _call(self, cluster: Cluster) -> None:
        with httpx.stream("POST", f"{cluster.url}/v1/completions", json=BODY, timeout=20) as response:
            events = response.iter_raw()
            next(events)
            self._started.set()
            self._left.wait(20)

    def leave(self) -> None:
        self._left.set()
        self._thread.join()


def waiting(cluster: Cluster) -> bool:
    return 'prefillshare_queue_calls{pool="decode/sql"} 1.0' in cluster.http.get("/metrics").text


def test_a_call_that_waits_has_nothing_prefilled_until_the_decode_side_has_room(busy: Cluster) -> None:
    stalled = Stalled(busy)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(httpx.post, f"{busy.url}/v1/completions", json=BODY, timeout=20)
        wait_for(lambda: waiting(busy))
        assert len(busy.prefill[0].bodies) == 1
        other = httpx.post(f"{busy.url}/v1/completions", json=BODY | {"model": "json"}, timeout=20)
        assert other.status_code == 200  # another model's worker is idle
        stalled.leave()
        response = call.result()
    assert response.status_code == 200
    assert float(response.headers["x-prefillshare-queue-ms"]) > 0
    assert len(busy.prefill[0].bodies) == 3


def test_who_finds_the_queue_full_is_told_when_to_come_back(busy: Cluster) -> None:
    stalled = Stalled(busy)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(httpx.post, f"{busy.url}/v1/completions", json=BODY, timeout=20)
        wait_for(lambda: waiting(busy))
        client = openai.OpenAI(base_url=f"{busy.url}/v1", api_key="-", max_retries=0)
        started = time.perf_counter()
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="sql", prompt="hello")
        assert time.perf_counter() - started < 1.0
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stalled.leave()
        assert call.result().status_code == 200
    text = busy.http.get("/metrics").text
    assert 'prefillshare_queue_refusals_total{pool="decode/sql",reason="queue_full",tenant=""} 1.0' in text
    for kind, pool, worker in (
        ("in_flight", "prefill", "prefill-0"),
        ("kv", "prefill", "prefill-0"),
        ("kv", "decode/sql", "sql-0"),
    ):
        labels = f'pool="{pool}",role="{pool.split("/")[0]}",worker="{worker}"'
        assert f"prefillshare_worker_{kind}_tokens{{{labels}}} 0.0" in text
    assert 'prefillshare_queue_calls{pool="decode/sql"} 0.0' in text


def test_a_client_that_leaves_the_queue_gives_way_at_once(busy: Cluster) -> None:
    stalled = Stalled(busy)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{busy.url}/v1/completions", json=BODY, timeout=0.3)
    wait_for(lambda: not waiting(busy))
    assert len(busy.prefill[0].bodies) == 1
    stalled.leave()
    assert busy.http.post("/v1/completions", json=BODY).status_code == 200


def test_a_call_that_cannot_start_within_its_deadline_is_refused(busy: Cluster) -> None:
    stalled = Stalled(busy)
    started = time.perf_counter()
    response = busy.http.post("/v1/completions", json=BODY, headers={"x-request-timeout-s": "0.2"})
    assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
    assert 0.15 < time.perf_counter() - started < 2.0
    stalled.leave()


def test_a_call_that_is_prefilled_again_does_not_queue_again(busy: Cluster) -> None:
    busy.decode["sql"][0].refusals = ["pull_failed"]
    assert busy.http.post("/v1/completions", json=BODY | {"stream": False}).status_code == 200
    assert len(busy.prefill[0].bodies) == 2
    assert 'prefillshare_queue_wait_seconds_count{pool="decode/sql"} 1.0' in busy.http.get("/metrics").text


def test_a_prompt_is_made_a_chain_once_however_often_it_is_tried(
    busy: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains: list[Chain] = []

    def noted(body: Mapping[str, Any], *density: float) -> Chain:
        chains.append(chain_of_request(body, *density))
        return chains[-1]

    monkeypatch.setattr(control, "chain_of_request", noted)
    busy.decode["sql"][0].refusals = ["pull_failed"]
    assert busy.http.post("/v1/completions", json=BODY | {"stream": False}).status_code == 200
    assert len(busy.prefill[0].bodies) == 2
    assert len(chains) == 1
