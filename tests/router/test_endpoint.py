import json
import logging
import re
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


def stream_lines(cluster: Cluster) -> list[str]:
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert response.status_code == 200
    return [line for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize("behaviour", ["dies", "ends early", "fails later"])
def test_a_stream_that_breaks_ends_with_an_error_event(cluster: Cluster, behaviour: str) -> None:
    cluster.decode["sql"][0].behaviour = behaviour
    *before, last = stream_lines(cluster)
    assert '"content":"sql"' in before[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "sql-0" in error["message"]
    with client_of(cluster) as client, pytest.raises(openai.APIError, match="sql-0"):
        ask(client, "sql", "hello", stream=True)


def test_a_stream_that_stalls_ends_with_an_error_event(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(timeout_s=1.0)
    cluster.decode["sql"][0].behaviour = "stalls"
    assert json.loads(stream_lines(cluster)[-1].removeprefix("data: "))["error"]["code"] == "worker_timed_out"
    wait_for(lambda: cluster.decode["sql"][0].aborted)


def test_kv_of_a_call_that_the_decode_worker_refuses_counts_until_its_lease_ends(
    start_cluster: Callable[..., Cluster],
) -> None:
    cluster = start_cluster(kv_lease_s=1.5)

    def parked() -> list[str]:
        text = cluster.http.get("/metrics").text
        return re.findall(r'^prefillshare_worker_kv_tokens{.*worker="prefill-0".*} (.*)$', text, re.M)

    assert cluster.http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert parked() == ["0.0"]
    cluster.decode["sql"][0].behaviour = "400"
    assert cluster.http.post("/v1/chat/completions", json=CHAT).status_code == 400
    assert float(parked()[0]) > 0
    wait_for(lambda: parked() == ["0.0"])


def retries(cluster: Cluster) -> dict[tuple[str, str], float]:
    """The counter of retries, by leg and reason."""
    lines = re.findall(r'_retries_total{leg="(\w+)",reason="(\w+)"} (.*)', cluster.http.get("/metrics").text)
    return {(leg, reason): float(count) for leg, reason, count in lines}


@pytest.mark.parametrize("stream", [False, True])
def test_lost_kv_is_prefilled_again_and_the_client_sees_nothing_of_it(cluster: Cluster, stream: bool) -> None:
    decode = cluster.decode["sql"][0]
    decode.refusals = ["lease_expired"]
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert response.status_code == 200
    assert "error" not in response.text
    assert "read" in response.text
    assert [len(cluster.prefill[0].bodies), len(decode.bodies)] == [2, 2]
    assert 'prefillshare_kv_lost_total{model="sql"} 1.0' in cluster.http.get("/metrics").text

    decode.refusals = ["lease_expired", "pull_failed", "preempted"]
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "kv_lost")
    assert "preempted" in response.json()["error"]["message"]
    assert [len(cluster.prefill[0].bodies), len(decode.bodies)] == [5, 5]
    assert retries(cluster) == {("decode", "lease_expired"): 2.0, ("decode", "pull_failed"): 1.0}


def test_what_a_retry_finds_in_the_cache_is_no_reuse(cluster: Cluster) -> None:
    """The first prefill has left it there: counted as reuse, it would raise the hit ratio just when workers fail."""
    cluster.decode["sql"][0].refusals = ["lease_expired"] * 2
    prompt = "x" * (10 * BLOCK_SIZE)
    response = cluster.http.post("/v1/completions", json={"model": "sql", "prompt": prompt})
    assert response.status_code == 200
    assert len(cluster.prefill[0].bodies) == 3
    metrics = set(cluster.http.get("/metrics").text.splitlines())
    computed = len(prompt) + 2 * BLOCK_SIZE  # the last block, at each retry
    assert metrics >= {
        f'prefillshare_prompt_tokens_total{{model="sql"}} {computed}.0',
        f'prefillshare_computed_tokens_total{{model="sql"}} {computed}.0',
        'prefillshare_reused_tokens_total{model="sql"} 0.0',
    }
    assert response.headers["x-prefillshare-prompt-tokens"] == str(len(prompt))
    assert response.headers["x-prefillshare-reused-tokens"] == "0"
    wait_for(lambda: cluster.http.get("/status.json").json()["window"]["calls"] == 1)
    assert cluster.http.get("/status.json").json()["window"]["reused_tokens"] == 0


def test_a_stream_that_breaks_after_its_opening_is_tried_again(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(sql=2)
    bad = cluster.decode["sql"][0]
    bad.behaviour = "opens"
    for _ in range(2):  # whichever of the two is asked first
        assert stream_lines(cluster)[-1] == "data: [DONE]"
    assert retries(cluster) == {("decode", "worker_failed"): float(len(bad.bodies))}
    assert bad.bodies


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_worker_that_fails_before_anything_was_streamed_is_replaced(
    start_cluster: Callable[..., Cluster], leg: str, stream: bool
) -> None:
    cluster = start_cluster(prefill=2, sql=2)
    bad = cluster.prefill[0] if leg == "prefill" else cluster.decode["sql"][0]
    bad.behaviour = "500"
    for _ in range(2):  # whichever of the two is asked first
        response = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        assert (response.status_code, "error" in response.text) == (200, False)
    assert len(bad.bodies) >= 1
    assert retries(cluster) == {(leg, "worker_failed"): float(len(bad.bodies))}


def test_a_decode_worker_that_takes_no_connection_is_replaced_without_another_prefill(
    start_cluster: Callable[..., Cluster],
) -> None:
    cluster = start_cluster(sql=2)
    cluster.servers["sql-0"].stop()
    for _ in range(2):
        assert cluster.http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert len(cluster.prefill[0].bodies) == 2


@pytest.mark.parametrize(("max_retries", "asked"), [(0, 1), (1, 2), (2, 3)])
def test_retries_are_bounded_over_both_legs(
    start_cluster: Callable[..., Cluster], max_retries: int, asked: int
) -> None:
    cluster = start_cluster(prefill=4, router={"retry": {"max_retries": max_retries}})
    for fake in cluster.prefill:
        fake.behaviour = "500"
    assert cluster.http.post("/v1/chat/completions", json=CHAT).json()["error"]["code"] == "worker_failed"
    assert [len(fake.bodies) for fake in cluster.prefill].count(1) == asked
    cluster.prefill[0].behaviour = "ok"


@pytest.mark.parametrize("status", ["400", "404", "413", "422"])
@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_what_no_other_try_would_mend_is_not_tried_again(cluster: Cluster, leg: str, status: str) -> None:
    fake = cluster.prefill[0] if leg == "prefill" else cluster.decode["sql"][0]
    fake.behaviour = status
    cluster.http.post("/v1/chat/completions", json=CHAT)
    assert len(fake.bodies) == 1
    assert retries(cluster) == {}


# Long enough that a worker is not taken for lost because the machine is busy.
WATCHFUL = {"health": {"poll_every_s": 0.05, "silent_after_s": 2.0, "stalled_after_s": 3.0, "token_timeout_s": 3.0}}


@pytest.mark.parametrize("behaviour", ["silent", "hangs"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_worker_that_stops_is_found_down_and_replaced_long_before_the_timeout(
    start_cluster: Callable[..., Cluster], leg: str, stream: bool, behaviour: str
) -> None:
    cluster = start_cluster(prefill=2, sql=2, router=WATCHFUL, timeout_s=60.0)
    bad = cluster.prefill[0] if leg == "prefill" else cluster.decode["sql"][0]
    bad.behaviour = behaviour
    for _ in range(2):  # whichever of the two is asked first
        response = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": stream}, timeout=30.0)
        assert (response.status_code, "error" in response.text) == (200, False)
    assert retries(cluster) == {(leg, "worker_lost"): 1.0}
    wait_for(lambda: bad.aborted)
    rows = [row for pool in cluster.http.get("/health").json()["pools"].values() for row in pool]
    assert [row["name"] for row in rows if not row["up"]] == [
        name for name, fake in cluster.workers.items() if fake is bad
    ]
    assert [row["faults"] for row in rows if not row["up"]] == [["health"] if behaviour == "silent" else ["token"]]


def test_a_stream_whose_worker_stops_ends_with_an_error_event(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router=WATCHFUL, timeout_s=60.0)
    cluster.decode["sql"][0].behaviour = "stalls"
    error = json.loads(stream_lines(cluster)[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("worker_lost", "server_error")
    assert "sql-0" in error["message"]


def test_a_worker_on_which_calls_fail_is_taken_out_until_it_makes_a_token(
    start_cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = start_cluster(
        prefill=2, router={"health": {"poll_every_s": 0.05, "failures": 2, "first_backoff_s": 0.05}}
    )
    bad = cluster.prefill[0]
    bad.behaviour = "500"
    for number in range(6):  # sessions of their own, so that both are chosen
        headers = {"x-session-id": f"s{number}"}
        assert cluster.http.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
    metrics = cluster.http.get("/metrics").text
    assert 'prefillshare_breaker_openings_total{worker="prefill-0"} 1.0' in metrics
    assert 'prefillshare_worker_breaker_open{pool="prefill",role="prefill",worker="prefill-0"} 1.0' in metrics
    assert retries(cluster) == {("prefill", "worker_failed"): 2.0}
    wait_for(lambda: 'probes_total{outcome="failed",worker="prefill-0"}' in cluster.http.get("/metrics").text)
    bad.behaviour = "ok"
    wait_for(lambda: all(row["up"] for row in cluster.http.get("/health").json()["pools"]["prefill"]))
    assert sum("breaker=open" in message for message in caplog.messages) == 1


def test_no_client_takes_a_worker_out_with_a_structure_that_no_grammar_can_be_made_of(
    start_cluster: Callable[..., Cluster],
) -> None:
    cluster = start_cluster(router={"health": {"poll_every_s": 0.05, "failures": 1}})
    cluster.decode["sql"][0].behaviour = "500"
    body = CHAT | {"response_format": {"type": "json_object"}}
    assert cluster.http.post("/v1/chat/completions", json=body).status_code == 502
    assert 'prefillshare_breaker_openings_total{worker="sql-0"} 0.0' in cluster.http.get("/metrics").text
    assert cluster.http.post("/v1/chat/completions", json=CHAT).status_code in (502, 503)
    assert 'prefillshare_breaker_openings_total{worker="sql-0"} 1.0' in cluster.http.get("/metrics").text


def test_a_prefill_that_takes_long_is_also_asked_of_another_worker_where_that_was_chosen(
    start_cluster: Callable[..., Cluster],
) -> None:
    cluster = start_cluster(prefill=2, router={"retry": {"hedge_after_s": 0.1}})
    slow = cluster.prefill[0]
    slow.behaviour = "hangs"
    served_by = []
    for _ in range(3):
        response = cluster.http.post("/v1/chat/completions", json=CHAT, headers={"x-session-id": "s"})
        assert response.status_code == 200
        served_by.append(response.headers["x-prefillshare-prefill-worker"])
    assert served_by == ["prefill-1"] * 3  # which stays the session's home
    assert len(slow.bodies) == 1
    wait_for(lambda: slow.aborted)
    assert retries(cluster) == {}
    failed = 'prefillshare_leg_failures_total{code="hedged",leg="prefill",worker="prefill-0"} 1.0'
    assert failed in cluster.http.get("/metrics").text


@pytest.mark.parametrize("behaviour", ["dies", "ends early", "fails later"])
def test_nothing_is_tried_again_once_something_was_streamed(cluster: Cluster, behaviour: str) -> None:
    cluster.decode["sql"][0].behaviour = behaviour
    stream_lines(cluster)
    assert len(cluster.decode["sql"][0].bodies) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session", [{"x-session-id": "s"}, {}])
def test_a_worker_that_lost_the_kv_is_not_asked_again_when_there_is_another(
    start_cluster: Callable[..., Cluster], stream: bool, session: dict[str, str]
) -> None:
    cluster = start_cluster(sql=2)

    def call() -> str:
        body = CHAT | {"messages": [{"role": "user", "content": CONTEXT}], "stream": stream}
        response = cluster.http.post("/v1/chat/completions", json=body, headers=session)
        assert (response.status_code, "error" in response.text) == (200, False)
        return response.headers["x-prefillshare-decode-worker"]

    home = call()
    assert call() == home
    cluster.workers[home].refusals = ["preempted", "preempted"]
    other = call()
    assert other != home
    assert call() == other


@pytest.mark.parametrize("reason", ["no_handoff", "forged_handoff", "used_handoff"])
def test_a_refusal_that_would_come_again_is_not_tried_again(cluster: Cluster, reason: str) -> None:
    cluster.decode["sql"][0].refusals = [reason, reason]
    assert cluster.http.post("/v1/chat/completions", json=CHAT).status_code == 502
    assert len(cluster.prefill[0].bodies) == 1


def test_a_stream_that_fails_before_its_first_event_is_an_http_error(cluster: Cluster) -> None:
    cluster.decode["sql"][0].behaviour = "fails"
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert response.status_code == 502
    assert "KV load failed" in response.json()["error"]["message"]


@pytest.mark.parametrize("behaviour", ["aborts", "crash", "500"])
def test_an_answer_that_is_not_finished_is_a_bad_gateway(cluster: Cluster, behaviour: str) -> None:
    cluster.decode["sql"][0].behaviour = behaviour
    response = cluster.http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 502
    assert "sql-0" in response.json()["error"]["message"]
    assert response.headers["x-prefillshare-prefill-worker"] == "prefill-0"


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
