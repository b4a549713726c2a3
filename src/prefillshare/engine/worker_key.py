"""A worker's door: every path but its health and metrics needs the deployment's worker key.

vLLM's own check of VLLM_API_KEY guards some prefixes only (/v1 and three more): /invocations, which serves the same
calls, /tokenize, and what pauses or rescales a worker are open. This middleware stands before all of them.
"""

import hashlib
import hmac
import json
import os

from starlette.types import ASGIApp, Receive, Scope, Send

WORKER_KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's name, so that its own check holds as well
OPEN_PATHS = frozenset({"/health", "/metrics"})


class WorkerKeyMiddleware:
    """Answers 401 to whoever does not send the key in `Authorization: Bearer ...`.

    Raises (on construction):
        RuntimeError: the worker has no key. A door without a lock would look like one.
    """

    def __init__(self, app: ASGIApp) -> None:
        key = os.environ.get(WORKER_KEY_VARIABLE)
        if not key:
            raise RuntimeError(
                f"the environment variable {WORKER_KEY_VARIABLE} is not set: this worker would be open to all"
            )
        self._app = app
        self._expected = _digest(b"Bearer " + key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _unauthorized(send)

    def _has_key(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(values) == 1 and hmac.compare_digest(_digest(values[0]), self._expected)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


async def _unauthorized(send: Send) -> None:
    error = {"message": "the worker key is missing or wrong", "type": "invalid_request_error", "param": None}
    body = json.dumps({"error": error | {"code": "invalid_api_key"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
