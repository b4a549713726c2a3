"""What a client is told when a call fails: OpenAI's error shape, and the HTTP status that goes with it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefillshare.router import sse

KV_LOST = "kv_lost"  # another prefill may bring it back
NOT_CONNECTED = "not_connected"
OUT_OF_FILES = "out_of_files"
WORKER_FAILED = "worker_failed"
WORKER_TIMED_OUT = "worker_timed_out"

# What a worker's refusal of a handoff says of itself (`prefillshare.engine.refusals`).
_REFUSED_HANDOFF = "handoff_refused"
_CLIENTS_MISTAKES = {  # with our code for each
    "local_prefill_asked": "unsupported_parameter",
    "grammar_failed": "invalid_grammar",
    "unknown_token": "invalid_value",
}
_LOST = frozenset({"another_base", "pull_failed", "lease_expired", "preempted"})
PREFILLS_FAULT = frozenset({"another_base", "pull_failed"})  # of these: the KV is not to be had from that worker

# How vLLM 0.32 refuses a prompt for its length. One that fills the context leaves 0 of the `max_tokens` that were asked
# for; a client that asks for 0 is refused before.
_TOO_LONG_PARAMS = ("input_tokens", "input_text")  # no fields of a request
_TOO_LONG = "longer than the maximum model length"
_NO_ROOM = "max_tokens must be at least 1, got 0"

_NOT_AGAIN = {"x-should-retry": "false"}  # OpenAI's clients repeat every 5xx that does not say so

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
    retry: str | None = None  # what another try may mend, for the metrics; None: it would end the same way

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def event(self) -> bytes:
        """The error as the last event of a stream. No `[DONE]` follows it: the answer is not complete."""
        return sse.event(json.dumps(self.body()).encode())


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RouterError:
    return RouterError(400, message, param=param, code=code)


def prompt_too_long(why: str, param: str | None = None) -> RouterError:
    """LangChain and LiteLLM know it by "prompt is too long", for which they raise errors of their own."""
    return bad_request(f"The prompt is too long: {why}", param, "context_length_exceeded")


def model_not_found(model: str, known: list[str]) -> RouterError:
    message = f"The model {model[:128]!r} does not exist. Models served here: {', '.join(known)}."
    return RouterError(404, message, param="model", code="model_not_found")


def model_removed(model: str) -> RouterError:
    """Of a call that had been let in, or waited for that."""
    return RouterError(404, f"The model {model!r} is no longer served.", param="model", code="model_not_found")


def worker_failed(worker: str, reason: str) -> RouterError:
    return _bad_gateway(worker, reason, WORKER_FAILED, retry=WORKER_FAILED)


def worker_lost(worker: str, reason: str) -> RouterError:
    """The worker was found down while it had the call."""
    return _bad_gateway(worker, f"went down: {reason}", "worker_lost", retry="worker_lost")


def worker_timed_out(worker: str, seconds: float) -> RouterError:
    """Not tried again: the client has waited for as long as it was told to."""
    message = f"worker {worker}: nothing heard for {seconds:g} s"
    return RouterError(504, message, type="server_error", code=WORKER_TIMED_OUT, headers=_NOT_AGAIN)


def not_connected(worker: str, reason: str) -> RouterError:
    """Nothing of the call has been sent."""
    return _come_back(f"worker {worker}: {reason}", NOT_CONNECTED, retry=NOT_CONNECTED)


def out_of_files() -> RouterError:
    """Nothing of the call has been sent, and no worker is to blame; so no other is tried, either."""
    return _come_back("The router has too many files open to connect to a worker.", OUT_OF_FILES, retry=None)


def unavailable(message: str, *, retry: str | None = None) -> RouterError:
    return _come_back(message, "no_worker_available", retry=retry)


def no_worker_up(pool: str, why: str) -> RouterError:
    """`why` says of each of the pool's workers what is the matter with it."""
    return unavailable(f"no {pool} worker is up ({why})")


def _bad_gateway(worker: str, reason: str, code: str, *, retry: str | None) -> RouterError:
    return RouterError(502, f"worker {worker}: {reason}", type="server_error", code=code, retry=retry)


def _come_back(message: str, code: str, *, retry: str | None) -> RouterError:
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return RouterError(503, message, type="server_error", code=code, headers=headers, retry=retry)


def internal() -> RouterError:
    message = "The router failed; its log has the reason."
    return RouterError(500, message, type="server_error", code="internal_error", headers=_NOT_AGAIN)


def worker_refused(worker: str, status: int, body: bytes) -> RouterError:
    """The error for a worker's answer that is not a success.

    Only what the client can mend keeps its status (400, 413, 422) and the worker's words. A 404 or 401 between router
    and worker is the deployment's fault and would mislead the client, so it becomes a 502 like every other status.
    """
    error = _error_object(body)
    message = str(error.get("message") or f"answered {status}")
    if error.get("type") == _REFUSED_HANDOFF:
        return _handoff_refused(worker, str(error.get("code")), message)
    if status == 400 and (why := _why_too_long(error.get("param"), message)):
        return prompt_too_long(why)
    if status in (400, 413, 422):
        param, code = error.get("param"), error.get("code")
        return RouterError(
            status,
            message,
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    if status in (429, 503):
        return unavailable(f"worker {worker}: {message}", retry="worker_busy")
    # Of a 401 or 404 another try would hear the same.
    retry = WORKER_FAILED if status >= 500 else None
    return _bad_gateway(worker, f"answered {status}: {message}", WORKER_FAILED, retry=retry)


def _handoff_refused(worker: str, reason: str, message: str) -> RouterError:
    """A client has no hand in handoffs: but for what it asked of the prompt itself, the fault is the deployment's."""
    if reason in _CLIENTS_MISTAKES:
        return bad_request(message, code=_CLIENTS_MISTAKES[reason])
    if reason in _LOST:
        return _come_back(f"worker {worker}: {reason}: {message}", KV_LOST, retry=reason)
    message = f"worker {worker}: {reason}: {message}"
    return RouterError(502, message, type="server_error", code="handoff_refused", headers=_NOT_AGAIN)


def _why_too_long(param: object, message: str) -> str | None:
    """None for a refusal that has another reason."""
    if message.startswith(_NO_ROOM):
        return "it leaves no room for an answer in the model's context. Send a shorter one."
    return message if param in _TOO_LONG_PARAMS or _TOO_LONG in message else None


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
