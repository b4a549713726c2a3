"""What a client is told when a call fails: OpenAI's error shape, and the HTTP status that goes with it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KV_LOST = "kv_lost"  # another prefill may bring it back

# What a worker's refusal of a handoff says of itself (`prefillshare.engine.refusals`).
_REFUSED_HANDOFF = "handoff_refused"
_CLIENTS_MISTAKE = "local_prefill_asked"
_LOST = frozenset({"another_base", "pull_failed", "lease_expired", "preempted"})

RETRY_AFTER_S = 1  # workers' health is polled every second, so a worker that comes back is seen within it


@dataclass(eq=False, slots=True)
class RouterError(Exception):
    """Ends a call. `status` is the HTTP status while nothing has been streamed; later only the body is sent."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def event(self) -> bytes:
        """The error as the last event of a stream. No `[DONE]` follows it: the answer is not complete."""
        return b"data: " + json.dumps(self.body()).encode() + b"\n\n"


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RouterError:
    return RouterError(400, message, param=param, code=code)


def model_not_found(model: str, known: list[str]) -> RouterError:
    message = f"The model {model[:128]!r} does not exist. Models served here: {', '.join(known)}."
    return RouterError(404, message, param="model", code="model_not_found")


def worker_failed(worker: str, reason: str) -> RouterError:
    return RouterError(502, f"worker {worker}: {reason}", type="server_error", code="worker_failed")


def worker_timed_out(worker: str, seconds: float) -> RouterError:
    message = f"worker {worker}: nothing heard for {seconds:g} s"
    return RouterError(504, message, type="server_error", code="worker_timed_out")


def unavailable(message: str) -> RouterError:
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return RouterError(503, message, type="server_error", code="no_worker_available", headers=headers)


def internal() -> RouterError:
    return RouterError(500, "The router failed; its log has the reason.", type="server_error", code="internal_error")


def worker_refused(worker: str, status: int, body: bytes) -> RouterError:
    """The error for a worker's answer that is not a success.

    Only what the client can mend keeps its status (400, 413, 422) and the worker's words. A 404 or 401 between router
    and worker is the deployment's fault and would mislead the client, so it becomes a 502 like every other status.
    """
    error = _error_object(body)
    message = str(error.get("message") or f"answered {status}")
    if error.get("type") == _REFUSED_HANDOFF:
        return _handoff_refused(worker, str(error.get("code")), message)
    if status in (400, 413, 422):
        param, code = error.get("param"), error.get("code")
        return RouterError(
            status,
            message,
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    if status in (429, 503):
        return unavailable(f"worker {worker}: {message}")
    return worker_failed(worker, f"answered {status}: {message}")


def _handoff_refused(worker: str, reason: str, message: str) -> RouterError:
    """A client has no hand in handoffs: but for what it asked of the prompt itself, the fault is the deployment's."""
    if reason == _CLIENTS_MISTAKE:
        return bad_request(message, code="unsupported_parameter")
    text = f"worker {worker}: {reason}: {message}"
    if reason in _LOST:
        headers = {"retry-after": str(RETRY_AFTER_S)}
        return RouterError(503, text, type="server_error", code=KV_LOST, headers=headers)
    return worker_failed(worker, f"{reason}: {message}")


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
