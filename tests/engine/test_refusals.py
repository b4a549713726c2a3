"""The middleware in front of vLLM's API server, with vLLM's answers played to it."""

import json
import threading
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from prefillshare.engine import refusals
from prefillshare.engine.handoff import Refusal
from prefillshare.engine.refusals import RefusalMiddleware, Refusals

# What vLLM 0.32 says when its engine ends a request with an error.
INTERNAL = {"error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}}
LOST = Refusal("lease_expired", "too late")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    """What the middleware looks into, of this test alone."""
    fresh = Refusals()
    fresh.fed = True
    monkeypatch.setattr(refusals, "REFUSALS", fresh)
    monkeypatch.setattr(refusals, "_WAIT_S", 0.05)
    return fresh


def client(answer: Response) -> TestClient:
    async def endpoint(request: Request) -> Response:
        answer.headers["x-seen-id"] = request.headers["x-request-id"]
        return answer

    app = Starlette(routes=[Route("/v1/completions", endpoint, methods=["POST"])])
    app.add_middleware(RefusalMiddleware)
    return TestClient(app)


def ask(answer: Response, call_id: str = "call") -> tuple[int, dict[str, str], bytes]:
    response = client(answer).post("/v1/completions", headers={"x-request-id": call_id})
    return response.status_code, dict(response.headers), response.content


@pytest.mark.parametrize("wrapped", ["cmpl-call-0-1a2b3c4d", "chatcmpl-call-1a2b3c4d", "1_cmpl-call-0", "cmpl-call"])
def test_an_error_of_the_engine_becomes_the_refusal(wrapped: str, registry: Refusals) -> None:
    registry.note(wrapped, LOST)
    status, headers, body = ask(JSONResponse(INTERNAL, 500))
    assert (status, headers["x-prefillshare-refusal"]) == (503, "lease_expired")
    assert json.loads(body) == {
        "error": {"message": "too late", "type": "handoff_refused", "param": None, "code": "lease_expired"}
    }
    assert int(headers["content-length"]) == len(body)


def test_a_refusal_that_is_the_callers_mistake_is_a_400(registry: Refusals) -> None:
    registry.note("cmpl-call-0", Refusal("no_handoff", "who are you?"))
    assert ask(JSONResponse(INTERNAL, 500))[0] == 400


@pytest.mark.parametrize("other", ["cmpl-recall-0", "cmpl-call2-0", "cmpl-x-call-0", "call"])
def test_the_refusal_of_another_call_is_not_told(other: str, registry: Refusals) -> None:
    registry.note(other, LOST)
    status, headers, body = ask(JSONResponse(INTERNAL, 500))
    assert (status, json.loads(body)) == (500, INTERNAL)
    assert "x-prefillshare-refusal" not in headers


def test_without_statistics_the_kv_counts_as_lost(registry: Refusals) -> None:
    registry.fed = False
    status, headers, _ = ask(JSONResponse(INTERNAL, 500))
    assert (status, headers["x-prefillshare-refusal"]) == (503, "pull_failed")


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"choices": []}),
        JSONResponse({"error": {"message": "bad", "code": 400}}, 400),
        Response(b"Internal Server Error", 500),
        JSONResponse({"error": {"message": "Out of luck", "code": 500}}, 500),
    ],
)
def test_everything_else_is_passed_on_as_it_is(answer: Response, registry: Refusals) -> None:
    registry.note("cmpl-call-0", LOST)
    registry.fed = False
    assert ask(answer)[::2] == (answer.status_code, answer.body)


async def _events() -> AsyncIterator[bytes]:
    yield b'data: {"choices": [{"text": "an \\"error\\""}]}\n\n'
    yield b"data: " + json.dumps(INTERNAL).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def test_the_reason_may_come_after_the_error(registry: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_WAIT_S", 5.0)
    late = threading.Timer(0.05, registry.note, ("cmpl-call-0", LOST))
    late.start()
    assert ask(JSONResponse(INTERNAL, 500))[0] == 503


def test_in_a_stream_the_event_is_rewritten(registry: Refusals) -> None:
    registry.note("cmpl-call-0", Refusal("preempted", "no room"))
    status, _, body = ask(StreamingResponse(_events(), media_type="text/event-stream"))
    first, error, done, rest = body.split(b"\n\n")
    assert (status, done, rest) == (200, b"data: [DONE]", b"")
    assert json.loads(first.removeprefix(b"data: "))["choices"][0]["text"] == 'an "error"'
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "preempted"


def test_a_call_without_an_id_gets_one() -> None:
    response = client(JSONResponse({})).post("/v1/completions")
    assert len(response.headers["x-seen-id"]) == 32


def test_the_first_reason_stays_and_old_ones_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_KEPT", 2)
    noted = Refusals()
    for request_id, reason in (("a", "preempted"), ("a", "pull_failed"), ("b", "pull_failed"), ("c", "pull_failed")):
        noted.note(request_id, Refusal(reason, ""))  # type: ignore[arg-type]
    assert noted.get("a") is None
    assert [noted.get(name) is not None for name in "bc"] == [True, True]
    noted.note("b", LOST)
    assert noted.get("b").reason == "pull_failed"  # type: ignore[union-attr]
