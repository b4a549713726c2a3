"""What the client sees of a decode worker's answer.

Passed through byte for byte, except: usage reports the cached tokens of the prefill side (a decode worker's own figure
is always prompt - 1), what is internal to the two legs is removed, and an answer that broke off is an error.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from prefillshare.router.errors import RouterError, worker_failed, worker_refused

_SEPARATOR = b"\n\n"
_DONE = b"data: [DONE]" + _SEPARATOR
_INTERNAL = ("kv_transfer_params", "ec_transfer_params")
# Quotes inside a JSON string are escaped, so these bytes can only be keys of the event itself, never generated text.
_REWRITTEN = (b'"usage":{', b'"kv_transfer_params"', b'"ec_transfer_params"')
_OPENING = b'"delta":{"role":"assistant","content":""'
_ABORTED = b'"finish_reason":"abort"'


def rewrite_answer(raw: bytes, cached_tokens: int, worker: str) -> bytes:
    """A whole (not streamed) answer, as sent to the client.

    Raises:
        RouterError: 502 when the worker gave up the answer (it was told to stop) or sent no JSON object.
    """
    try:
        answer = json.loads(raw)
    except ValueError:
        raise worker_failed(worker, "sent an answer that is not JSON") from None
    if not isinstance(answer, dict):
        raise worker_failed(worker, "sent an answer that is not a JSON object")
    if any(choice.get("finish_reason") == "abort" for choice in answer.get("choices") or []):
        raise worker_failed(worker, "stopped before the answer was complete")
    return _dump(_rewrite(answer, cached_tokens))


async def rewrite_stream(chunks: AsyncIterator[bytes], cached_tokens: int, worker: str) -> AsyncIterator[bytes]:
    """Server-sent events as they come off the wire, as sent to the client; ends after `[DONE]`.

    Yields whole events only, several at once when several have arrived. A chat's opening event, which says nothing but
    that the assistant speaks, is held until the next: a worker sends it before it knows whether it has the base's KV.

    Raises:
        RouterError: when the worker reports an error in the stream, or the stream ends without `[DONE]`. Events before
            that have been yielded.
    """
    pending = b""
    ready: list[bytes] = []
    async for chunk in chunks:
        *events, pending = (pending + chunk).split(_SEPARATOR)
        failure: RouterError | None = None
        for event in events:
            event += _SEPARATOR
            if failure := _failure(event, worker):
                break
            ready.append(_rewrite_event(event, cached_tokens) if any(key in event for key in _REWRITTEN) else event)
        if len(ready) == 1 and _OPENING in ready[0]:
            if failure:
                raise failure
            continue
        if ready:
            yield b"".join(ready)
        if failure:
            raise failure
        if ready and ready[-1] == _DONE:
            return
        ready = []
    if ready:
        yield b"".join(ready)
    raise worker_failed(worker, "the connection ended before the answer was complete")


def _failure(event: bytes, worker: str) -> RouterError | None:
    if event.startswith(b'data: {"error":'):
        data = event.removeprefix(b"data: ")
        code = json.loads(data)["error"].get("code")
        return worker_refused(worker, code if isinstance(code, int) else 500, data)
    if _ABORTED in event:
        return worker_failed(worker, "stopped before the answer was complete")
    return None


def _rewrite_event(event: bytes, cached_tokens: int) -> bytes:
    data = json.loads(event.removeprefix(b"data: "))
    return b"data: " + _dump(_rewrite(data, cached_tokens)) + _SEPARATOR


def _rewrite(answer: dict[str, Any], cached_tokens: int) -> dict[str, Any]:
    for field in _INTERNAL:
        answer.pop(field, None)
    if usage := answer.get("usage"):
        details = usage.get("prompt_tokens_details") or {}
        usage["prompt_tokens_details"] = details | {"cached_tokens": cached_tokens}
    return answer


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
