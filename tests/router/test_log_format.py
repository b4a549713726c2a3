import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from prefillshare.router.accounting import Attribution
from prefillshare.router.log_format import LOG, JsonFormatter, log_call, logging_as
from prefillshare.router.record import CallRecord
from tests.router.conftest import Cluster
from tests.router.fakes import wait_for

CALL = CallRecord(
    "4f2a",
    "chat/completions",
    "sql",
    200,
    None,
    1.25,
    stream=True,
    session=("user", "ann"),
    prefill_worker="prefill-0",
    decode_worker="sql-0",
    tokens=Attribution(100, 36, 64, 32, {"json": 32}),
    output_tokens=5,
    prefill_seconds=0.2,
    first_token_seconds=0.25,
    sent_bytes=900,
)


def written(call: CallRecord) -> dict[str, Any]:
    stream = io.StringIO()
    with logging_as("json", stream):
        log_call(call)
    (line,) = stream.getvalue().splitlines()
    return json.loads(line)


def test_a_call_is_one_json_line() -> None:
    line = written(CALL)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "event": "call",
        "request_id": "4f2a",
        "endpoint": "chat/completions",
        "model": "sql",
        "prefill_worker": "prefill-0",
        "decode_worker": "sql-0",
        "status": 200,
        "stream": True,
        "duration_s": 1.25,
        "prefill_s": 0.2,
        "first_token_s": 0.25,
        "per_output_token_s": 0.25,
        "prompt_tokens": 100,
        "computed_tokens": 36,
        "reused_tokens": 64,
        "reused_from_others_tokens": 32,
        "output_tokens": 5,
        "sent_bytes": 900,
    }


def test_what_is_not_known_of_a_call_is_left_out() -> None:
    line = written(CallRecord("id", "completions", "unknown", 404, "model_not_found", 0.001))
    assert line["reason"] == "model_not_found"
    assert not line.keys() & {"prefill_worker", "decode_worker", "prompt_tokens", "first_token_s", "output_tokens"}


def test_in_the_text_line_a_dash_stands_for_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOG.name):
        log_call(CallRecord("id", "completions", "unknown", 499, None, 0.001))
    assert caplog.messages == ["request=id model=unknown prefill=- decode=- status=499 reason=- ms=1"]


def test_other_messages_are_json_lines_too_and_exceptions_do_not_quote() -> None:
    stream = io.StringIO()
    with logging_as("json", stream):
        LOG.warning("worker=%s down", "sql-0")
        try:
            raise ValueError("a prompt")
        except ValueError:
            LOG.exception("request=%s failed in the router", "id")
    down, failed = map(json.loads, stream.getvalue().splitlines())
    assert (down["level"], down["event"], down["message"]) == ("warning", "message", "worker=sql-0 down")
    assert failed["exception"].startswith("ValueError at test_log_format.py:")
    assert "a prompt" not in stream.getvalue()


def test_json_goes_nowhere_else_and_ends_with_the_block(caplog: pytest.LogCaptureFixture) -> None:
    before = (LOG.level, LOG.propagate, list(LOG.handlers))
    with logging_as("json", io.StringIO()):
        LOG.warning("once")
    assert (LOG.level, LOG.propagate, LOG.handlers) == before
    assert "once" not in caplog.messages


def test_text_goes_where_it_went(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOG.name), logging_as("text"):
        log_call(CALL)
    assert caplog.messages == ["request=4f2a model=sql prefill=prefill-0 decode=sql-0 status=200 reason=- ms=1250"]


def test_newlines_cannot_forge_a_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "one\n{}", None, None)
    assert "\n" not in JsonFormatter().format(record)


def test_a_router_logs_calls_as_json_under_the_id_that_its_workers_got(
    start_cluster: Callable[..., Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = start_cluster(router={"log_format": "json"})
    body = {"model": "sql", "messages": [{"role": "user", "content": "hello"}], "user": "ann", "stream": True}
    headers = {"authorization": "Bearer secret-key", "x-session-id": "s-1"}
    cluster.http.post("/v1/chat/completions", json=body, headers=headers)
    cluster.http.post("/v1/chat/completions", json=body | {"model": "hello"}, headers=headers)
    out = ""

    def calls() -> list[dict[str, Any]]:
        nonlocal out
        out += capsys.readouterr().out
        return [line for line in map(json.loads, out.splitlines()) if line["event"] == "call"]

    wait_for(lambda: len(calls()) == 2)
    good, refused = sorted(calls(), key=lambda call: int(call["status"]))  # the first may end its work after the second
    assert good["request_id"] == cluster.prefill[0].headers[0]["x-request-id"]
    assert good["request_id"] == cluster.decode["sql"][0].headers[0]["x-request-id"]
    assert (good["status"], good["model"], good["output_tokens"], good["prompt_tokens"]) == (200, "sql", 3, 11)
    assert (refused["status"], refused["model"], refused["reason"]) == (404, "unknown", "model_not_found")
    assert not any(word in out for word in ("hello", "ann", "secret-key", "s-1"))
