import json

import openai
import pytest

from prefillshare.engine.handoff import STATUS
from prefillshare.router.errors import (
    KV_LOST,
    RouterError,
    bad_request,
    internal,
    model_not_found,
    worker_failed,
    worker_refused,
    worker_timed_out,
)
from prefillshare.router.flow.errors import too_long
from tests.router.conftest import Cluster


def test_the_body_has_openai_shape() -> None:
    error = bad_request("no", "n", "unsupported_parameter")
    assert error.body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "unsupported_parameter"}
    }
    assert error.event() == b"data: " + json.dumps(error.body()).encode() + b"\n\n"


def test_an_unknown_model_lists_the_known_ones() -> None:
    error = model_not_found("gpt-4", ["json", "sql"])
    assert error.status == 404
    assert "json, sql" in error.message
    assert len(model_not_found("x" * 10_000, ["sql"]).message) < 300


def worker_error(code: int) -> bytes:
    return json.dumps({"error": {"message": "too long", "type": "X", "param": "prompt", "code": code}}).encode()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_client_can_mend_keeps_its_status_and_words(status: int) -> None:
    error = worker_refused("prefill-0", status, worker_error(status))
    assert (error.status, error.message, error.param, error.code) == (status, "too long", "prompt", None)


@pytest.mark.parametrize("status", [401, 404, 500, 302])
def test_other_answers_are_a_bad_gateway_that_names_the_worker(status: int) -> None:
    error = worker_refused("prefill-0", status, worker_error(status))
    assert error.status == 502
    assert "prefill-0" in error.message
    assert str(status) in error.message


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_worker_asks_to_come_back(status: int) -> None:
    error = worker_refused("prefill-0", status, worker_error(status))
    assert error.status == 503
    assert error.headers["retry-after"] == "1"


@pytest.mark.parametrize("body", [b"", b"Internal Server Error", b"[]", b'{"error": "text"}', b'{"error": null}'])
def test_a_worker_error_of_any_shape_is_understood(body: bytes) -> None:
    assert worker_refused("prefill-0", 500, body).status == 502
    assert worker_refused("prefill-0", 400, body).message == "answered 400"


def refused_handoff(reason: str) -> RouterError:
    error = {"message": "why", "type": "handoff_refused", "param": None, "code": reason}
    return worker_refused("sql-0", STATUS[reason], json.dumps({"error": error}).encode())  # type: ignore[index]


@pytest.mark.parametrize("reason", [reason for reason, status in STATUS.items() if status == 503])
def test_lost_kv_is_told_apart_for_it_can_come_back(reason: str) -> None:
    error = refused_handoff(reason)
    assert (error.status, error.code, error.type) == (503, KV_LOST, "server_error")
    assert error.headers["retry-after"]
    assert reason in error.message
    assert "sql-0" in error.message
    assert error.retry == reason


@pytest.mark.parametrize("reason", [reason for reason, status in STATUS.items() if status == 400])
def test_other_refusals_are_the_deployments_fault_but_for_what_the_client_asked(reason: str) -> None:
    error = refused_handoff(reason)
    clients = {
        "local_prefill_asked": "unsupported_parameter",
        "grammar_failed": "invalid_grammar",
        "unknown_token": "invalid_value",
    }
    assert (error.status, error.code) == ((400, clients[reason]) if reason in clients else (502, "handoff_refused"))
    assert error.retry is None


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (400, None),
        (401, None),
        (404, None),
        (413, None),
        (429, "worker_busy"),
        (500, "worker_failed"),
        (503, "worker_busy"),
    ],
)
def test_another_try_is_worth_it_where_the_worker_is_at_fault(status: int, retry: str | None) -> None:
    assert worker_refused("prefill-0", status, worker_error(status)).retry == retry


# vLLM 0.32's words (`renderers/params.py`, `sampling_params.py`, `v1/engine/input_processor.py`), and its `param`.
TOO_LONG = [
    (
        "This model's maximum context length is 80 tokens. However, your prompt contains at least 81 input tokens, "
        "which exceeds this limit even without any output tokens. (parameter=input_tokens, value=81)",
        "input_tokens",
    ),
    ("However, your prompt contains 9000 characters (parameter=input_text, value=9000)", "input_text"),
    ("max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"),
    ("The decoder prompt (length 81) is longer than the maximum model length of 80.", None),
    (
        "The decoder prompt (length 80) plus the number of requested output tokens (at least 1) is longer than the "
        "maximum model length of 80.",
        None,
    ),
]


def refused_prompt(message: str, param: object, status: int = 400) -> RouterError:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": status}
    return worker_refused("prefill-0", status, json.dumps({"error": error}).encode())


@pytest.mark.parametrize(("message", "param"), TOO_LONG)
def test_a_prompt_that_a_worker_finds_too_long_is_told_as_one_that_the_router_does(
    message: str, param: str | None
) -> None:
    """LangChain and LiteLLM know it by the words "prompt is too long"."""
    error, routers = refused_prompt(message, param), too_long(81, 80, "messages")
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", None)
    assert (routers.status, routers.code, routers.param) == (400, "context_length_exceeded", "messages")
    for each in (error, routers):
        assert each.message.startswith("The prompt is too long: ")
    if param != "max_tokens":
        assert error.message.endswith(message)


@pytest.mark.parametrize("param", ["max_tokens", None, ["input_tokens"], {}, 7])
def test_another_refusal_is_not_taken_for_a_prompt_that_is_too_long(param: object) -> None:
    error = refused_prompt("max_tokens=99 cannot be greater than max_model_len=80.", param)
    assert (error.status, error.code) == (400, None)
    assert refused_prompt("why", "input_tokens", 422).code is None


@pytest.mark.parametrize("error", [internal(), worker_timed_out("a", 1.0), refused_handoff("used_handoff")], ids=str)
def test_what_is_not_to_be_repeated_says_so(error: RouterError) -> None:
    assert error.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.headers


@pytest.mark.parametrize("error", [worker_failed("a", "b"), refused_handoff("pull_failed")], ids=str)
def test_what_may_be_repeated_does_not_forbid_it(error: RouterError) -> None:
    assert "x-should-retry" not in error.headers


def test_openais_client_does_not_repeat_what_would_fail_again(cluster: Cluster) -> None:
    cluster.decode["sql"][0].refusals = ["used_handoff"] * 3
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=2)
    with client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="sql", prompt="hello")
    assert caught.value.code == "handoff_refused"
    assert len(cluster.decode["sql"][0].bodies) == 1
