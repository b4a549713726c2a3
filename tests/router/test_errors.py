import json

import pytest

from prefillshare.engine.handoff import STATUS
from prefillshare.router.errors import KV_LOST, RouterError, bad_request, model_not_found, worker_refused


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
    clients = {"local_prefill_asked": "unsupported_parameter", "grammar_failed": "invalid_grammar"}
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
