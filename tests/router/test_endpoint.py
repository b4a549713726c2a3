import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.router.conftest import Cluster
from tests.router.fakes import BLOCK_SIZE, wait_for

CONTEXT = "a context that both models read, " * 3
CHAT: dict[str, Any] = {"model": "sql", "messages": [{"role": "user", "content": "hello"}]}


def client_of(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=0, timeout=20)


def ask(client: openai.OpenAI, model: str, text: str, stream: bool) -> str:
    """The answer to a chat of one message."""
    messages: Any = [{"role": "user", "content": text}]
    if not stream:
        answer = client.chat.completions.create(model=model, messages=messages)
        return str(answer.choices[0].message.content)
    chunks = client.chat.completions.create(model=model, messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_client_chats_with_each_model(cluster: Cluster, stream: bool) -> None:
    with client_of(cluster) as client:
        for model in ("sql", "json"):
            assert ask(client, model, "hello", stream) == f"{model} read <user>hello"


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_client_completes_text(cluster: Cluster, stream: bool) -> None:
    with client_of(cluster) as client:
        answer: Any = client.completions.create(model="sql", prompt="hello", stream=stream, max_tokens=1)
        parts = answer if stream else [answer]
        assert "".join(part.choices[0].text for part in parts) == "sql read hello"


SQL_ROLE = {"role": "system", "content": "You write SQL."}
JSON_ROLE = {"role": "system", "content": "You write JSON."}


def prompts(cluster: Cluster, context: list[dict[str, str]]) -> tuple[str, str, int]:
    """What `sql` and then `json` read, each asked in its own role, and how many tokens `json` found in the cache."""
    answers = [
        cluster.http.post("/v1/chat/completions", json={"model": model, "messages": [role, *context]}).json()
        for model, role in (("sql", SQL_ROLE), ("json", JSON_ROLE))
    ]
    sql, json_ = (answer["choices"][0]["message"]["content"].partition(" read ")[2] for answer in answers)
    return sql, json_, answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_modules_with_instructions_in_place_get_the_messages_as_they_were_sent(cluster: Cluster) -> None:
    sql, json_, cached = prompts(cluster, [{"role": "user", "content": CONTEXT}])
    assert sql == f"<system>You write SQL.<user>{CONTEXT}"
    assert json_ == f"<system>You write JSON.<user>{CONTEXT}"
    assert cached < len(CONTEXT) // 2


def test_modules_with_instructions_behind_share_the_whole_context(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(behind_context=("sql", "json"))
    context = [
        {"role": "user", "content": CONTEXT},
        {"role": "assistant", "content": "noted"},
        {"role": "user", "content": "go on"},
    ]
    sql, json_, cached = prompts(cluster, context)
    shared = f"<user>{CONTEXT}<assistant>noted<user>go on"
    assert sql == f"{shared}\n\nYou write SQL."
    assert json_ == f"{shared}\n\nYou write JSON."
    assert cached == len(f"{shared}\n\nYou write ") // BLOCK_SIZE * BLOCK_SIZE


def test_each_module_has_its_own_placement(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(behind_context=("sql",))
    sql, json_, _ = prompts(cluster, [{"role": "user", "content": "hello"}])
    assert sql == "<user>hello\n\nYou write SQL."
    assert json_ == "<system>You write JSON.<user>hello"


def test_instructions_that_cannot_be_moved_are_refused(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(behind_context=("sql",))
    refused = cluster.http.post(
        "/v1/chat/completions", json={"model": "sql", "messages": [{"role": "system", "content": 3}]}
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert cluster.worker_bodies() == 0
    assert cluster.http.get("/health").json()["pools"]["prefill"][0]["in_flight"] == 0


def test_clients_at_once_get_their_own_answers(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(prefill=2, sql=2)
    with client_of(cluster) as client, ThreadPoolExecutor(16) as threads:
        asked = [(("sql", "json")[n % 2], f"question {n}", n % 3 == 0) for n in range(48)]
        answers = list(threads.map(lambda call: ask(client, *call), asked))
    assert answers == [f"{model} read <user>{text}" for model, text, _ in asked]
    assert all(fake.bodies for fake in [*cluster.prefill, *cluster.decode["sql"]])


def test_proxies_are_told_to_pass_streams_on_as_they_come(cluster: Cluster) -> None:
    answer = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache")


@pytest.mark.parametrize("stream", [False, True])
def test_headers_and_usage_tell_what_the_base_computed_and_who_had_paid(cluster: Cluster, stream: bool) -> None:
    def call(model: str, prompt: str) -> tuple[httpx.Headers, dict[str, Any]]:
        body: dict[str, Any] = {"model": model, "prompt": prompt, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        response = cluster.http.post("/v1/completions", json=body)
        assert response.status_code == 200
        if not stream:
            return response.headers, response.json()["usage"]
        events = response.text.removesuffix("\n\n").split("\n\n")
        assert events[-1] == "data: [DONE]"
        return response.headers, json.loads(events[-2].removeprefix("data: "))["usage"]

    call("sql", CONTEXT)
    headers, usage = call("json", CONTEXT + "and more")
    reused = len(CONTEXT) // 16 * 16
    expected = {
        "prefill-worker": "prefill-0",
        "decode-worker": "json-0",
        "prompt-tokens": str(len(CONTEXT) + 8),
        "computed-tokens": str(len(CONTEXT) + 8 - reused),
        "reused-tokens": str(reused),
        "reused-from-others-tokens": str(reused),
    }
    assert {name: headers[f"x-prefillshare-{name}"] for name in expected} == expected
    assert float(headers["x-prefillshare-prefill-ms"]) > 0
    assert usage["prompt_tokens"] == len(CONTEXT) + 8
    assert usage["prompt_tokens_details"]["cached_tokens"] == reused


def test_a_session_meets_its_context_whichever_model_it_calls(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(prefill=3)
    for model in ("sql", "json", "sql", "json"):
        body = {"model": model, "prompt": CONTEXT}
        response = cluster.http.post("/v1/completions", json=body, headers={"x-session-id": "s"})
    assert [len(fake.bodies) for fake in cluster.prefill].count(4) == 1
    assert int(response.headers["x-prefillshare-reused-tokens"]) > 0


def test_a_header_and_a_counter_say_which_rules_placed_a_call(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(prefill=2, sql=2)

    def placed(model: str, session: str) -> str:
        body = {"model": model, "prompt": CONTEXT * 4}
        response = cluster.http.post("/v1/completions", json=body, headers={"x-session-id": session})
        return response.headers["x-prefillshare-placement"]

    assert placed("sql", "s") == "prefill=least_recent; decode=least_recent"
    assert placed("json", "s") == "prefill=session; decode=only"
    assert placed("sql", "s") == "prefill=session; decode=session"
    assert placed("sql", "t") == "prefill=conversation; decode=conversation"
    metrics = cluster.http.get("/metrics").text
    assert 'prefillshare_placements_total{leg="prefill",rule="session"} 2.0' in metrics
    assert 'prefillshare_placements_total{leg="decode",rule="session"} 1.0' in metrics


def test_a_call_that_fails_in_the_decode_leg_says_what_placed_its_prefill(cluster: Cluster) -> None:
    cluster.decode["sql"][0].behaviour = "500"
    response = cluster.http.post("/v1/chat/completions", json=CHAT)
    assert response.headers["x-prefillshare-placement"] == "prefill=only"


def test_one_request_id_is_used_everywhere_and_clients_cannot_choose_it(cluster: Cluster) -> None:
    response = cluster.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    request_id = response.headers["x-request-id"]
    assert request_id != "mine"
    assert response.json()["id"] == f"chatcmpl-{request_id}"
    assert cluster.prefill[0].headers[0]["x-request-id"] == request_id
    assert cluster.decode["sql"][0].headers[0]["x-request-id"] == request_id


def test_no_header_of_the_client_reaches_a_worker(cluster: Cluster) -> None:
    headers = {"x-data-parallel-rank": "7", "x-vllm-priority": "-9", "authorization": "Bearer secret"}
    assert cluster.http.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
    for fake in (cluster.prefill[0], cluster.decode["sql"][0]):
        assert not fake.headers[0].keys() & headers.keys()


def test_the_answer_shows_nothing_of_the_legs(cluster: Cluster) -> None:
    answer = cluster.http.post("/v1/chat/completions", json=CHAT).json()
    assert "kv_transfer_params" not in answer
    assert answer["model"] == "sql"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (CHAT | {"kv_transfer_params": {"do_remote_prefill": True}}, 400),
        (CHAT | {"kv_transfer_params": None}, 400),
        (CHAT | {"n": 9}, 400),
        (CHAT | {"model": "base"}, 404),
        ([], 400),
    ],
)
def test_a_refused_request_reaches_no_worker(cluster: Cluster, body: Any, status: int) -> None:
    response = cluster.http.post("/v1/chat/completions", json=body)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert cluster.worker_bodies() == 0


def test_each_endpoint_refuses_what_only_the_other_has(cluster: Cluster) -> None:
    for path, body, field in (
        ("completions", {"model": "sql", "prompt": "x", "max_completion_tokens": 200}, "max_completion_tokens"),
        ("chat/completions", CHAT | {"prompt": "x"}, "prompt"),
    ):
        response = cluster.http.post(f"/v1/{path}", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert cluster.worker_bodies() == 0


def test_a_body_over_the_limit_is_refused(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(max_body_bytes=1000)
    assert cluster.http.post("/v1/completions", json={"model": "sql", "prompt": "x" * 2000}).status_code == 413
    assert cluster.http.post("/v1/completions", json={"model": "sql", "prompt": "x" * 20}).status_code == 200


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_a_client_sees_usage_in_a_stream_only_when_it_has_asked(cluster: Cluster, options: Any) -> None:
    body = CHAT | {"stream": True, "stream_options": options}
    text = cluster.http.post("/v1/chat/completions", json=body).text
    assert ('"usage":{' in text) is bool(options and options["include_usage"])
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(("model", "leg", "stream"), [("base", 1, True), ("base", 1, False), ("sql", 2, False)])
def test_a_client_that_leaves_while_it_waits_aborts_the_leg(
    cluster: Cluster, model: str, leg: int, stream: bool
) -> None:
    fake = cluster.prefill[0] if model == "base" else cluster.decode["sql"][0]
    fake.behaviour = "silent"
    with pytest.raises(httpx.ReadTimeout):
        cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": stream}, timeout=1.0)
    wait_for(lambda: fake.aborted, seconds=5)
    wait_for(lambda: 'prefillshare_requests_total{model="sql",status="499"} 1.0' in cluster.http.get("/metrics").text)
    assert cluster.worker_bodies() == leg


def test_a_client_that_leaves_a_stream_aborts_it(cluster: Cluster) -> None:
    fake = cluster.decode["sql"][0]
    fake.behaviour = "stalls"
    with cluster.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        next(response.iter_raw())
    wait_for(lambda: fake.aborted, seconds=5)
    wait_for(lambda: cluster.http.get("/health").json()["pools"]["decode/sql"][0]["in_flight"] == 0)


def test_the_log_says_who_served_what_and_nothing_that_was_said(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def calls() -> list[str]:
        return [message for message in caplog.messages if message.startswith("request=")]

    with caplog.at_level(logging.INFO, logger="prefillshare.router"):
        headers = {"authorization": "Bearer hello", "x-session-id": "hello"}
        for number, body in enumerate(
            (CHAT | {"user": "ann"}, CHAT | {"model": "hello\n200"}, CHAT | {"kv_transfer_params": "hello"}), start=1
        ):
            cluster.http.post("/v1/chat/completions", json=body, headers=headers)
            wait_for(lambda number=number: len(calls()) == number)
    assert "model=sql prefill=prefill-0 decode=sql-0 status=200" in calls()[0]
    assert "model=unknown prefill=- decode=- status=404 reason=model_not_found" in calls()[1]
    assert not any(word in caplog.text for word in ("hello", "ann", "127.0.0.1", "engine"))


def test_calls_and_tokens_are_counted(cluster: Cluster) -> None:
    for model in ("sql", "json", "nobody"):
        cluster.http.post("/v1/completions", json={"model": model, "prompt": CONTEXT, "stream": True})
    reused = len(CONTEXT) // 16 * 16
    expected = {
        'prefillshare_requests_total{model="json",status="200"} 1.0',
        'prefillshare_requests_total{model="unknown",status="404"} 1.0',
        f'prefillshare_reused_from_others_tokens_total{{model="json"}} {float(reused)}',
        'prefillshare_time_to_first_token_seconds_count{model="json"} 1.0',
        'prefillshare_leg_duration_seconds_count{leg="prefill",worker="prefill-0"} 2.0',
        'prefillshare_leg_duration_seconds_count{leg="decode",worker="json-0"} 1.0',
        'prefillshare_errors_total{code="model_not_found",model="unknown"} 1.0',
        'prefillshare_output_tokens_total{model="json"} 20.0',
        'prefillshare_request_duration_seconds_count{model="json"} 1.0',
        "prefillshare_in_flight_requests 0.0",
        f'prefillshare_paid_tokens_total{{model="json",payer="sql"}} {float(reused)}',
    }
    # A call is counted just after its last byte has been sent.
    wait_for(lambda: expected <= set(cluster.http.get("/metrics").text.splitlines()))
