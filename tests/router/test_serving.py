import json
import re
from collections.abc import Callable

import openai
import pytest

from tests.router.conftest import Cluster
from tests.router.fakes import BLOCK_SIZE, wait_for
from tests.router.test_endpoint import CHAT, CONTEXT, ask, client_of


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
    cluster = start_cluster(facts={"kv_lease_s": 1.5})

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
