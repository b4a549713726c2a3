"""Extension in a whole router over fake workers, whose blocks have 16 tokens, one a byte."""

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message

from prefillshare.access import KeyConfig, digest
from prefillshare.router.call import Call
from prefillshare.router.extension import extension as extension_module
from prefillshare.router.extension.extension import Extension
from prefillshare.router.extension.metrics import ExtensionMetrics, Outcome
from prefillshare.router.record import CallRecord
from tests.router.conftest import Cluster
from tests.router.fakes import BLOCK_SIZE, wait_for

KEYS = {"x-session-id": "one"}
FIRST = [{"role": "user", "content": "What is in the table of customers?"}]


def turn(cluster: Cluster, messages: list[dict[str, Any]], model: str = "sql", **fields: Any) -> tuple[str, int]:
    """The answer, and the tokens that the base computed for it."""
    body = {"model": model, "messages": messages, **fields}
    response = cluster.http.post("/v1/chat/completions", json=body, headers=KEYS)
    assert response.status_code == 200, response.text
    if fields.get("stream"):
        text = "".join(re.findall(r'"content":"([^"]*)"', response.text))
    else:
        text = response.json()["choices"][0]["message"]["content"]
    return text, int(response.headers["x-prefillshare-computed-tokens"])


def extensions(cluster: Cluster) -> list[dict[str, Any]]:
    return [body for fake in cluster.prefill for body in fake.extensions]


def outcomes(cluster: Cluster) -> dict[str, float]:
    text = cluster.http.get("/metrics").text
    found = re.findall(r'^prefillshare_extensions_total\{model="sql",outcome="(\w+)"\} (\S+)$', text, re.M)
    return {outcome: float(count) for outcome, count in found if float(count)}


def tokens(cluster: Cluster, kind: str, model: str = "sql") -> int:
    text = cluster.http.get("/metrics").text
    match = re.search(rf'^prefillshare_extension_{kind}_tokens_total\{{model="{model}"\}} (\S+)$', text, re.M)
    assert match
    return int(float(match[1]))


def wait_for_outcome(cluster: Cluster, **expected: float) -> None:
    wait_for(lambda: outcomes(cluster) == expected)


@pytest.mark.parametrize("mode", ["on", "auto"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_next_turn_of_another_model_finds_the_answer_prefilled(
    start_cluster: Callable[..., Cluster], mode: str, stream: bool
) -> None:
    cluster = start_cluster(router={"extension": mode})
    answer, _ = turn(cluster, FIRST, stream=stream)
    wait_for_outcome(cluster, done=1)
    (body,) = extensions(cluster)
    assert body["messages"] == [*FIRST, {"role": "assistant", "content": answer}]
    context = f"<user>{FIRST[0]['content']}<assistant>{answer}"
    second = [*body["messages"], {"role": "user", "content": "and?"}]
    _, computed = turn(cluster, second, "json")
    assert computed == len(context + "<user>and?") - len(context) // BLOCK_SIZE * BLOCK_SIZE

    first_blocks = len(f"<user>{FIRST[0]['content']}") // BLOCK_SIZE * BLOCK_SIZE
    assert tokens(cluster, "computed") == len(context) - first_blocks
    assert tokens(cluster, "wasted") == len(context) % BLOCK_SIZE
    assert tokens(cluster, "hit", "json") == len(context) // BLOCK_SIZE * BLOCK_SIZE - first_blocks
    assert tokens(cluster, "hit", "sql") == 0


def test_who_pays_for_an_extension_is_the_model_that_had_answered(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "on"})
    answer, _ = turn(cluster, FIRST)
    wait_for_outcome(cluster, done=1)
    response = cluster.http.post(
        "/v1/chat/completions",
        json={"model": "json", "messages": [*FIRST, {"role": "assistant", "content": answer}, *FIRST]},
    )
    headers = response.headers
    assert headers["x-prefillshare-reused-from-others-tokens"] == headers["x-prefillshare-reused-tokens"] != "0"


def test_instructions_behind_the_context_are_left_out(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "on"}, behind_context=("sql", "json"))
    answer, _ = turn(cluster, [{"role": "system", "content": "You write SQL."}, *FIRST])
    wait_for_outcome(cluster, done=1)
    context = [*FIRST, {"role": "assistant", "content": answer}]
    assert extensions(cluster)[0]["messages"] == context
    role = {"role": "system", "content": "You write JSON."}
    _, computed = turn(cluster, [role, *context, {"role": "user", "content": "and?"}], "json")
    shared = len(f"<user>{FIRST[0]['content']}<assistant>{answer}")
    assert computed == shared % BLOCK_SIZE + len("<user>and?\n\nYou write JSON.")


def test_nothing_is_done_when_it_is_off(cluster: Cluster) -> None:
    turn(cluster, FIRST)
    time.sleep(0.1)
    assert extensions(cluster) == []
    assert outcomes(cluster) == {}


def test_an_answer_that_fills_no_block_is_left(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "on"})
    # 10 tokens; the fake reports those of "sql read <user>1234" as 3, which does not reach the 16th.
    turn(cluster, [{"role": "user", "content": "1234"}])
    wait_for_outcome(cluster, no_gain=1)
    assert extensions(cluster) == []


@pytest.mark.parametrize("behaviour", ["fails", "dies", "fails later"])
def test_an_answer_that_fails_is_not_extended(start_cluster: Callable[..., Cluster], behaviour: str) -> None:
    cluster = start_cluster(router={"extension": "on"})
    cluster.workers["sql-0"].behaviour = behaviour
    cluster.http.post("/v1/chat/completions", json={"model": "sql", "messages": FIRST, "stream": True})
    time.sleep(0.1)
    assert extensions(cluster) == []
    assert outcomes(cluster) == {}


def test_an_answer_that_the_client_left_is_not_extended(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "on"})
    cluster.workers["sql-0"].behaviour = "stalls"
    body = {"model": "sql", "messages": FIRST, "stream": True}
    with cluster.http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_raw())
    wait_for(lambda: cluster.workers["sql-0"].aborted)
    time.sleep(0.1)
    assert extensions(cluster) == []


@pytest.mark.parametrize("behaviour", ["500", "crash"])
def test_a_worker_that_fails_at_it_is_not_asked_again_and_serves_on(
    start_cluster: Callable[..., Cluster], behaviour: str
) -> None:
    cluster = start_cluster(router={"extension": "on"})
    prefill = cluster.prefill[0]
    prefill.extending = behaviour
    turn(cluster, FIRST)
    wait_for_outcome(cluster, failed=1)
    assert len(extensions(cluster)) == 1
    assert cluster.http.get("/health").status_code == 200
    turn(cluster, FIRST)


def test_the_next_call_of_the_session_ends_it(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "on"})
    prefill = cluster.prefill[0]
    prefill.extending = "silent"
    turn(cluster, FIRST)
    wait_for(lambda: extensions(cluster))
    prefill.extending = "ok"
    cluster.workers["sql-0"].slow_s = 1.0
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(turn, cluster, FIRST)
        wait_for(lambda: prefill.aborted == 1)
        assert not coming.done()
    wait_for_outcome(cluster, cancelled=1, done=1)


def test_auto_gives_way_to_any_call_on_the_worker(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "auto"})
    prefill = cluster.prefill[0]
    prefill.extending = "silent"
    turn(cluster, FIRST)
    wait_for(lambda: extensions(cluster))
    prefill.slow_s = 0.3
    cluster.http.post("/v1/completions", json={"model": "json", "prompt": "x"})  # of no session
    assert prefill.aborted == 1
    assert outcomes(cluster) == {"cancelled": 1}


def test_auto_waits_until_the_worker_is_idle(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"extension": "auto"})
    prefill = cluster.prefill[0]
    with ThreadPoolExecutor(1) as thread:
        prefill.slow_s = 0.5
        other = thread.submit(cluster.http.post, "/v1/completions", json={"model": "json", "prompt": "x"})
        wait_for(lambda: prefill.bodies)
        prefill.slow_s = 0.0
        turn(cluster, FIRST)
        time.sleep(0.1)
        assert not other.done()
        assert extensions(cluster) == []
        other.result()
    wait_for_outcome(cluster, done=1)


def test_it_has_the_tenants_salt_and_takes_nothing_from_its_rates(start_cluster: Callable[..., Cluster]) -> None:
    key = KeyConfig(name="t", sha256=digest("k").hex(), requests_per_minute=2, max_concurrent=1)
    cluster = start_cluster(router={"extension": "on", "keys": (key,)})
    cluster.http.headers["authorization"] = "Bearer k"
    cluster.prefill[0].extending = "silent"
    turn(cluster, FIRST)
    wait_for(lambda: extensions(cluster))
    leg, extension = cluster.prefill[0].bodies
    assert len(leg["cache_salt"]) == 64
    assert extension["cache_salt"] == leg["cache_salt"]
    turn(cluster, FIRST)


def test_a_router_that_stops_ends_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> Outcome:
        await asyncio.sleep(60)
        return "done"

    monkeypatch.setattr(Extension, "_extend", never)
    registry = CollectorRegistry()
    extension = Extension(Mock(), "on", {}, Mock(), ExtensionMetrics(registry, ["sql"]), BLOCK_SIZE)
    call = Call("id", "chat/completions", "sql", {}, False, None)
    record = CallRecord("id", "chat/completions", "sql", 200, None, 1.0)

    async def play() -> None:
        extension.begin(call, record, lambda: b"")
        await asyncio.sleep(0)
        await extension.close()

    asyncio.run(asyncio.wait_for(play(), 5))
    assert registry.get_sample_value("prefillshare_extensions_total", {"model": "sql", "outcome": "cancelled"}) == 1


def test_no_more_turns_wait_than_are_bounded(monkeypatch: pytest.MonkeyPatch, start_cluster: Any) -> None:
    monkeypatch.setattr(extension_module, "MAX_TURNS", 1)
    cluster = start_cluster(router={"extension": "on"})
    cluster.prefill[0].extending = "silent"
    for session in ("one", "two"):
        body = {"model": "sql", "messages": FIRST}
        cluster.http.post("/v1/chat/completions", json=body, headers={"x-session-id": session})
    wait_for_outcome(cluster, busy=1)
    wait_for(lambda: len(extensions(cluster)) == 1)


def test_what_is_not_listened_to_costs_nothing() -> None:
    async def send(message: Message) -> None: ...

    extension = Extension(Mock(), "off", {}, Mock(), ExtensionMetrics(CollectorRegistry(), []), BLOCK_SIZE)
    assert extension.turn(send).send is send
