"""How a worker's refusal reaches the caller: as an HTTP answer with a reason that a program can act on.

vLLM ends a request whose KV did not arrive with "Internal server error" and no reason. The connector, in the engine's
process, notes the reason under the request's id; with the statistics of the same step it comes to the API server's
process (`stats.py`), where the middleware puts it into the answer. With statistics switched off every such error is
told as `pull_failed`, which asks for the commonest remedy: prefill again.
"""

import asyncio
import json
import re
import uuid
from collections import OrderedDict
from threading import Lock
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefillshare.engine.handoff import STATUS, Refusal

HEADER = "x-prefillshare-refusal"
ERROR_TYPE = "handoff_refused"

_KEPT = 10_000  # callers that left never fetch theirs
_WAIT_S = 1.0  # statistics come right behind the answer, not with it
_POLL_S = 0.01
_UNKNOWN = Refusal("pull_failed", "the request ended without the base's KV; prefill it again")
_REQUEST_ID = b"x-request-id"


class Refusals:
    """Why requests were refused, by the id that vLLM's engine gave them. Used from several threads.

    `fed` says whether this process hears of all refusals.
    """

    def __init__(self) -> None:
        self.fed = False
        self._by_request: OrderedDict[str, Refusal] = OrderedDict()
        self._lock = Lock()

    def note(self, request_id: str, refusal: Refusal) -> None:
        """The first reason stays: what follows from it would hide it."""
        with self._lock:
            self._by_request.setdefault(request_id, refusal)
            if len(self._by_request) > _KEPT:
                self._by_request.popitem(last=False)

    def get(self, request_id: str) -> Refusal | None:
        with self._lock:
            return self._by_request.get(request_id)

    def take(self, call_id: str) -> Refusal | None:
        """The refusal of the call with this `x-request-id`, which vLLM wraps into ids of its own."""
        wrapped = re.compile(rf"(\d+_)?(chat)?cmpl-{re.escape(call_id)}(-\d+)?(-[0-9a-f]+)?")
        with self._lock:
            for request_id in reversed(self._by_request):
                if wrapped.fullmatch(request_id):
                    return self._by_request.pop(request_id)
        return None


REFUSALS = Refusals()


class RefusalMiddleware:
    """Turns vLLM's error for a refused request into the refusal: status, header, and `code` in OpenAI's error shape.

    Answers that begin well are passed on as they come; of a stream, an event that reports an error is rewritten.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        call_id = _call_id(scope)
        await self._app(scope, receive, _Answer(send, call_id))


class _Answer:
    """The `send` of one call. Holds back the start of a 500 until its body says whether that was a refusal."""

    def __init__(self, send: Send, call_id: str) -> None:
        self._send = send
        self._call_id = call_id
        self._held: Message | None = None
        self._body = b""
        self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
            if message["status"] == 500:
                self._held = message
                return
        elif message["type"] == "http.response.body":
            if self._held is not None:
                self._body += message.get("body", b"")
                if not message.get("more_body"):
                    await self._end_held(self._held)
                return
            if self._streams and b'"error"' in message.get("body", b""):
                message = {**message, "body": await self._with_reason(message["body"])}
        await self._send(message)

    async def _end_held(self, start: Message) -> None:
        refusal = await _refusal(self._call_id) if _is_generation_error(self._body) else None
        body = self._body
        if refusal is not None:
            body = json.dumps(_error(refusal)).encode()
            headers = MutableHeaders(raw=list(start["headers"]))
            headers[HEADER] = refusal.reason
            headers["content-length"] = str(len(body))
            start = {**start, "status": STATUS[refusal.reason], "headers": headers.raw}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _with_reason(self, events: bytes) -> bytes:
        lines = events.split(b"\n")
        for place, line in enumerate(lines):
            if line.startswith(b"data: ") and _is_generation_error(line[len(b"data: ") :]):
                refusal = await _refusal(self._call_id)
                if refusal is not None:
                    lines[place] = b"data: " + json.dumps(_error(refusal)).encode()
        return b"\n".join(lines)


async def _refusal(call_id: str) -> Refusal | None:
    """Why the engine ended the call; None when it was for another reason than its KV."""
    if not REFUSALS.fed:
        return _UNKNOWN
    for _ in range(round(_WAIT_S / _POLL_S)):
        if refusal := REFUSALS.take(call_id):
            return refusal
        await asyncio.sleep(_POLL_S)
    return None


def _call_id(scope: Scope) -> str:
    """The call's `x-request-id`, which vLLM makes part of its own ids; one is added when there is none."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            return str(value.decode("latin-1"))
    call_id = uuid.uuid4().hex
    scope["headers"] = [*scope["headers"], (_REQUEST_ID, call_id.encode())]
    return call_id


def _is_generation_error(body: bytes) -> bool:
    """Whether this is what vLLM says of a request that its engine ended with an error, and of nothing else."""
    try:
        error: Any = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(error, dict) and error.get("message") == "Internal server error" and error.get("code") == 500


def _error(refusal: Refusal) -> dict[str, Any]:
    error = {"message": refusal.message, "type": ERROR_TYPE, "param": None, "code": refusal.reason}
    return {"error": error}
