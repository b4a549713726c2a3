"""Who gets into the router, how often, and what of it is seen from outside: a whole router with fake workers."""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from prefillshare.access import digest
from prefillshare.errors import UserError
from prefillshare.router import endpoint, serving
from prefillshare.router.auth import Keyring
from prefillshare.router.gate import Gate
from prefillshare.router.rates import RateLimits, Rates
from prefillshare.router.tenant_metrics import TenantMetrics
from prefillshare.router.tenants import Caller, salt_of
from prefillshare.router_config import RouterConfig
from tests.router.conftest import Cluster
from tests.router.fakes import BLOCK_SIZE, wait_for
from tests.router.test_limits import FIELDS, JSON

CONTEXT = "a context that nobody else may know of, " * 3
ANN, BOB, EVE, OPS = ("ps-" + letter * 43 for letter in "abeo")


def entry(key: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(key).hex(), **fields}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def keyed(start_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """A router with keys: of ann's, of bob's for `json` alone, and an operator's; `fields` are more of ann's."""
    monkeypatch.setenv("PREFILLSHARE_ROUTER_SECRET", "secret")

    def start(router: dict[str, Any] | None = None, **fields: Any) -> Cluster:
        keys = [
            entry(ANN, "ann", **fields),
            entry(BOB, "bob", models=["json"]),
            entry(OPS, "ops", models=[], operator=True),
        ]
        return start_cluster(router={"keys": keys, **(router or {})}, facts={"key": "worker-secret"})

    return start


def ask(cluster: Cluster, key: str | None, model: str = "json", **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {}) | (bearer(key) if key else {})
    return cluster.http.post("/v1/completions", json={"model": model, "prompt": "hi", **fields}, headers=headers)


def metrics(cluster: Cluster) -> list[str]:
    return cluster.http.get("/metrics", headers=bearer(OPS)).text.splitlines()


def test_calls_without_a_valid_key_are_refused_and_reach_no_worker(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    for key in (None, EVE, ANN[:-1]):
        response = ask(cluster, key)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
    assert cluster.worker_bodies() == 0
    assert 'prefillshare_auth_failures_total{reason="missing"} 1.0' in metrics(cluster)
    assert 'prefillshare_auth_failures_total{reason="unknown"} 2.0' in metrics(cluster)


def test_the_openai_client_gets_in_with_its_key_and_its_own_exception_without(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    messages: Any = [{"role": "user", "content": "hi"}]
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=ANN, max_retries=0) as client:
        answer = client.chat.completions.create(model="sql", messages=messages)
        assert answer.choices[0].message.content == "sql read <user>hi"
    with (
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=EVE, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/sql", "/metrics", "/status.json", "/docs", "/health/", "//health", "//"]
)
def test_every_path_that_tells_something_needs_a_key(keyed: Callable[..., Cluster], path: str) -> None:
    cluster = keyed()
    assert cluster.http.get(cluster.url + path).status_code == 401  # whole: httpx would read "//health" as a host


def test_without_keys_everything_is_open(cluster: Cluster) -> None:
    response = ask(cluster, EVE)
    assert response.status_code == 200
    assert not any(name.startswith("x-ratelimit") for name in response.headers)
    assert all("cache_salt" not in body for fake in cluster.workers.values() for body in fake.bodies)
    assert cluster.http.get("/metrics").status_code == 200
    assert cluster.http.get("/status.json").status_code == 200


def test_a_key_sees_and_calls_its_models_only(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()

    def listed(key: str) -> list[str]:
        found = cluster.http.get("/v1/models", headers=bearer(key)).json()["data"]
        return [model["id"] for model in found]

    assert (listed(ANN), listed(BOB)) == (["sql", "json"], ["json"])
    for response in (ask(cluster, BOB, "sql"), cluster.http.get("/v1/models/sql", headers=bearer(BOB))):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert "Models served here: json." in response.json()["error"]["message"]
    assert ask(cluster, BOB, "json").status_code == 200


def test_health_tells_strangers_no_more_than_that_it_is_up(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    for headers in ({}, bearer(EVE), bearer(ANN)):
        response = cluster.http.get("/health", headers=headers)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert "prefill" in cluster.http.get("/health", headers=bearer(OPS)).json()["pools"]


def test_the_status_page_comes_to_everybody_and_its_figures_to_operators(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    for path in ("/", "/status.css", "/status.js"):
        for headers in ({}, bearer(EVE), bearer(ANN)):
            page = cluster.http.get(path, headers=headers)
            assert (page.status_code, page.content) == (200, cluster.http.get(path, headers=bearer(OPS)).content)
    refused = [cluster.http.get("/status.json", headers=headers) for headers in ({}, bearer(EVE), bearer(ANN))]
    assert [response.status_code for response in refused] == [401, 401, 403]
    assert not any("prefill" in response.text for response in refused)
    assert "prefill-0" in cluster.http.get("/status.json", headers=bearer(OPS)).text


def test_the_status_page_counts_one_session_name_of_two_tenants_as_two_sessions(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    for key in (ANN, BOB, BOB):
        ask(cluster, key, headers={"x-session-id": "same"})
    status = wait_for_calls(cluster, 3)
    assert status["sessions"] == 2


def wait_for_calls(cluster: Cluster, calls: int) -> dict[str, Any]:
    def status() -> dict[str, Any]:
        return cluster.http.get("/status.json", headers=bearer(OPS)).json()

    wait_for(lambda: status()["totals"]["calls"] == calls)
    return status()


def test_metrics_are_for_operators(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    assert cluster.http.get("/metrics", headers=bearer(ANN)).status_code == 403
    ask(cluster, ANN)
    ask(cluster, BOB, "sql")
    expected = {
        'prefillshare_tenant_requests_total{status="200",tenant="ann"} 1.0',
        'prefillshare_tenant_requests_total{status="404",tenant="bob"} 1.0',
    }
    wait_for(lambda: expected <= set(metrics(cluster)))


def test_too_many_requests_are_refused_with_openais_headers(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed(requests_per_minute=2)
    first = ask(cluster, ANN)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert ask(cluster, ANN, "nobody").status_code == 404  # counts, as it does at OpenAI
    refused = ask(cluster, ANN)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert ask(cluster, BOB).status_code == 200
    assert 'prefillshare_rate_limited_total{limit="requests",tenant="ann"} 1.0' in metrics(cluster)


def test_prompt_tokens_are_charged_once_known(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed(tokens_per_minute=100)
    answer = ask(cluster, ANN, prompt="x" * 70)
    assert answer.headers["x-ratelimit-limit-tokens"] == "100"
    assert 30 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 35
    assert ask(cluster, ANN, prompt="y" * 70).status_code == 200
    assert ask(cluster, ANN).json()["error"]["type"] == "tokens"


def test_a_prompt_that_is_prefilled_again_is_charged_once(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed(tokens_per_minute=100)
    cluster.decode["json"][0].refusals = ["lease_expired"]
    answer = ask(cluster, ANN, prompt="x" * 40)
    assert answer.status_code == 200
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 60


def test_a_prompt_with_several_answers_is_charged_once_and_each_prompt_of_a_call(
    keyed: Callable[..., Cluster],
) -> None:
    cluster = keyed(tokens_per_minute=1000)
    body = {"model": "json", "prompt": ["x" * 100, "y" * 200], "n": 3}
    answer = cluster.http.post("/v1/completions", json=body, headers=bearer(ANN))
    assert answer.status_code == 200
    assert 700 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 720


def test_calls_at_a_time_are_limited_and_freed_however_they_end(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed(max_concurrent=1)
    cluster.decode["json"][0].behaviour = "stalls"
    body = {"model": "json", "prompt": "hi", "stream": True}
    with cluster.http.stream("POST", "/v1/completions", json=body, headers=bearer(ANN)) as response:
        events = response.iter_raw()  # kept: without it the connection would be closed
        next(events)
        refused = ask(cluster, ANN, "sql")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert ask(cluster, BOB, "sql").status_code == 404  # another key is not held up
    wait_for(lambda: ask(cluster, ANN, "sql").status_code == 200)
    for _ in range(2):
        assert ask(cluster, ANN, "nobody").status_code == 404


async def test_a_client_may_call_again_as_soon_as_it_has_read_its_answer() -> None:
    caller = Caller("ann", rates=Rates(RateLimits(max_concurrent=1)))
    ring = Keyring([(digest(ANN), caller)])
    codes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    gate = Gate(app, settings=RouterConfig(), keyring=ring, metrics=TenantMetrics(CollectorRegistry(), ["ann"]))

    async def call(calls_again_on: bytes) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                codes.append(message["status"])
            elif message["body"] == calls_again_on:
                await call(b"nothing")

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"authorization", b"Bearer " + ANN.encode())],
        }
        await gate(scope, _nothing, send)

    await call(b"b")
    assert codes == [200, 200]
    codes.clear()
    await call(b"a")
    assert codes == [200, 429]


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def test_both_legs_carry_the_tenants_salt_and_the_worker_key(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    for stream in (False, True):
        ask(cluster, ANN, "sql", stream=stream, cache_salt=None)
    cluster.http.post(
        "/v1/chat/completions",
        json={"model": "sql", "messages": [{"role": "user", "content": "hi"}]},
        headers=bearer(ANN),
    )
    fakes = (cluster.prefill[0], cluster.decode["sql"][0])
    assert [len(fake.bodies) for fake in fakes] == [3, 3]
    for fake in fakes:
        assert {body["cache_salt"] for body in fake.bodies} == {salt_of("ann", "secret")}
        assert {headers["authorization"] for headers in fake.headers} == {"Bearer worker-secret"}
        assert not any(ANN in str(headers) for headers in fake.headers)


def test_a_client_cannot_choose_a_salt(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    response = ask(cluster, ANN, cache_salt=salt_of("bob", "secret"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "cache_salt")
    assert cluster.worker_bodies() == 0


def reuse(cluster: Cluster, key: str, model: str = "json") -> tuple[int, int]:
    """Tokens that a call with the common context found, and of those the ones that another model had paid for."""
    headers = ask(cluster, key, model, prompt=CONTEXT).headers
    return (
        int(headers["x-prefillshare-reused-tokens"]),
        int(headers["x-prefillshare-reused-from-others-tokens"]),
    )


def test_no_tenant_finds_or_is_told_of_what_another_has_sent(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed()
    whole = (len(CONTEXT) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert reuse(cluster, ANN, "sql") == (0, 0)
    assert reuse(cluster, BOB) == (0, 0)
    assert reuse(cluster, BOB) == (whole, 0)  # not "from others": sql's call was another tenant's
    assert reuse(cluster, ANN) == (whole, whole)


def test_tenants_that_trust_each_other_share(start_cluster: Callable[..., Cluster]) -> None:
    keys = [entry(key, name, share_cache=True) for key, name in ((ANN, "ann"), (BOB, "bob"))]
    cluster = start_cluster(router={"keys": [*keys, entry(EVE, "eve")]})
    assert reuse(cluster, ANN, "sql") == (0, 0)
    assert min(reuse(cluster, BOB)) > 0
    assert reuse(cluster, EVE) == (0, 0)


def test_a_session_of_one_tenant_is_no_other_tenants(
    start_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = start_cluster(prefill=2, router={"keys": [entry(ANN, "ann"), entry(BOB, "bob")]})

    def worker(key: str) -> str:
        return ask(cluster, key, headers={"x-session-id": "1"}).headers["x-prefillshare-prefill-worker"]

    first = worker(ANN)
    other = worker(BOB)  # a session of its own goes to the worker that was idle for longer
    assert other != first
    assert [worker(ANN), worker(BOB), worker(BOB)] == [first, other, other]


@pytest.mark.parametrize("field", ["prompt_cache_key", "user"])
def test_no_tenant_is_told_of_another_ones_session(start_cluster: Callable[..., Cluster], field: str) -> None:
    cluster = start_cluster(prefill=2, router={"keys": [entry(ANN, "ann"), entry(BOB, "bob")]})

    def placed_by_session(key: str) -> bool:
        return "prefill=session" in ask(cluster, key, **{field: "agent-1"}).headers["x-prefillshare-placement"]

    assert [placed_by_session(key) for key in (ANN, BOB, ANN, BOB)] == [False, False, True, True]


@pytest.mark.parametrize("headers", [[("x-a", "v")] * 20, [("x-a", "v" * 2000)]])
def test_headers_are_limited_before_anything_else(
    keyed: Callable[..., Cluster], headers: list[tuple[str, str]]
) -> None:
    cluster = keyed({"limits": {"max_headers": 16, "max_header_bytes": 1500}})
    for authorization in ([], [*bearer(ANN).items()]):
        response = cluster.http.get("/v1/models", headers=headers + authorization)
        assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")


def test_a_body_that_is_too_deep_reaches_no_worker(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed({"limits": {"max_depth": 5}})
    response = ask(cluster, ANN, documents=[[[[[["x"]]]]]])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "documents")
    assert cluster.worker_bodies() == 0


def test_a_router_whose_key_is_missing_does_not_start(
    start_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        start_cluster(router={"keys": [{"name": "a", "key_env": "NO_SUCH_KEY"}]})


SECRET_TEXT = "the-quick-brown-prompt"


def misadventures(cluster: Cluster) -> None:
    """Calls that go well and calls that fail in every way there is, each with the same text and a key."""
    key = bearer(ANN)
    chat = {"model": "sql", "messages": [{"role": "user", "content": SECRET_TEXT}], "user": SECRET_TEXT}
    decode = cluster.decode["sql"][0]
    for behaviour in ("ok", "400", "500", "crash", "fails", "dies", "fails later", "aborts"):
        decode.behaviour = behaviour
        for stream in (False, True):
            cluster.http.post("/v1/chat/completions", json=chat | {"stream": stream}, headers=key)
    decode.behaviour = "ok"
    decode.refusals = ["pull_failed", "preempted"]
    cluster.http.post("/v1/chat/completions", json=chat, headers=key)
    for body in (
        chat | {"model": SECRET_TEXT},
        chat | {"cache_salt": SECRET_TEXT},
        chat | {"messages": [[[[[[[SECRET_TEXT]]]]]]]},
        chat | {SECRET_TEXT: [[[[[[[[]]]]]]]]},
        SECRET_TEXT,
    ):
        cluster.http.post("/v1/chat/completions", json=body, headers=key)
    cluster.http.post("/v1/chat/completions", content=f'{{"{SECRET_TEXT}', headers=key)
    for path in (f"/v1/models/{SECRET_TEXT}", f"/{SECRET_TEXT}", f"/v1/models/{ANN}", f"/{ANN}?key={ANN}"):
        cluster.http.get(path, headers=key)
        cluster.http.get(path, headers=bearer(EVE))
        cluster.http.get(path, headers={"authorization": f"Basic {ANN}"})
    cluster.http.get("/v1/models", headers=key | {"x-a": SECRET_TEXT * 1000})


def break_the_router(monkeypatch: pytest.MonkeyPatch, module: ModuleType, where: str) -> None:
    def fail(*arguments: object, **fields: object) -> None:
        raise ValueError(f"cannot take {SECRET_TEXT} and {ANN}")

    monkeypatch.setattr(module, where, fail)


def test_no_log_holds_a_prompt_or_a_key(
    keyed: Callable[..., Cluster], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = keyed({"limits": {"max_depth": 5}})
    shown: list[str] = []
    with caplog.at_level(logging.DEBUG):
        for name in ("httpx", "httpcore", "asyncio", "hypothesis"):  # the client's side of this test
            logging.getLogger(name).setLevel(logging.WARNING)
        misadventures(cluster)
        for module, where in ((serving, "_headers"), (endpoint, "check_body"), (endpoint, "admit")):
            with monkeypatch.context() as patch:
                break_the_router(patch, module, where)
                response = ask(cluster, ANN, prompt=SECRET_TEXT)
                assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
                shown.append(response.text)
        wait_for(lambda: caplog.text.count("failed in the router: ValueError") == 3)
        shown += [*metrics(cluster), cluster.http.get("/health", headers=bearer(OPS)).text]
    assert "status=200" in caplog.text
    for text in (caplog.text, *shown):
        for secret in (SECRET_TEXT, ANN, EVE, OPS, "worker-secret", digest(ANN).hex(), salt_of("ann", "secret")):
            assert secret not in text


def test_prompts_are_logged_where_that_was_asked_for_and_keys_are_not(
    keyed: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = keyed({"log_prompts": True})
    with caplog.at_level(logging.INFO, logger="prefillshare.router"):
        ask(cluster, ANN, prompt=SECRET_TEXT)
        wait_for(lambda: "status=200" in caplog.text)
    assert SECRET_TEXT in caplog.text
    assert ANN not in caplog.text


def test_clients_at_once_stay_within_their_limits(keyed: Callable[..., Cluster]) -> None:
    cluster = keyed(requests_per_minute=10)
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda _: ask(cluster, ANN).status_code, range(30)))
    assert sorted(codes) == [200] * 10 + [429] * 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(FIELDS, JSON, max_size=6), path=st.sampled_from(["chat/completions", "completions"]))
def test_no_body_makes_the_router_fail(cluster: Cluster, body: dict[str, Any], path: str) -> None:
    raw = json.dumps({"model": "sql", "messages": [], **body}).encode()
    response = cluster.http.post(f"/v1/{path}", content=raw)
    assert response.status_code in (200, 400, 404), response.text
