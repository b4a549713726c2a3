"""What the client sees of a decode worker's answer.

Passed through byte for byte, except: usage reports the cached tokens of the prefill side (a decode worker's own figure
is always prompt - 1) and none that a cache was given (its own are pulled), what is internal to the two legs is removed,
and an answer that broke off is an error.
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefillshare.router import sse
from prefillshare.router.errors import RouterError, worker_failed, worker_refused

_DONE = sse.event(sse.DONE)
_INTERNAL = ("kv_transfer_params", "ec_transfer_params")
# Quotes inside a JSON string are escaped, so these bytes can only be keys of the event itself, never generated text.
_REWRITTEN = (b'"usage":{', b'"kv_transfer_params"', b'"ec_transfer_params"')
_OPENING = b'"delta":{"role":"assistant","content":""'
_ERROR = b'data: {"error":'
_ABORTED = b'"finish_reason":"abort"'


@dataclass(slots=True)
class Usage:
    """What the worker reports of an answer; known once the answer is complete."""

    shown: bool = True  # whether the closing usage event of a stream is for the client
    output_tokens: int | None = None


def rewrite_answer(raw: bytes, cached_tokens: int, worker: str, usage: Usage | None = None) -> bytes:
    """A whole (not streamed) answer, as sent to the client. What it says of its usage is put into `usage`.

    Raises:
        RouterError: 502 when the worker gave up the answer (it was told to stop) or sent no JSON object.
    """
    answer = _object(raw, worker)
    choices = answer.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise worker_failed(worker, "sent an answer whose choices are none")
    if any(choice.get("finish_reason") == "abort" for choice in choices):
        raise worker_failed(worker, "stopped before the answer was complete")
    _read_usage(answer, usage or Usage())
    return dump(_rewrite(answer, cached_tokens))


async def rewrite_stream(
    chunks: AsyncIterator[bytes], cached_tokens: int, worker: str, usage: Usage | None = None
) -> AsyncIterator[bytes]:
    """Server-sent events as they come off the wire, as sent to the client; ends after `[DONE]`.

    Yields whole events only, several at once when several have arrived. A chat's opening event, which says nothing but
    that the assistant speaks, is held until the next: a worker sends it before it knows whether it has the base's KV.
    What the closing usage event says is put into `usage`, which also says whether that event is left out.

    Raises:
        RouterError: when the worker reports an error in the stream, or the stream ends without `[DONE]`. Events before
            that have been yielded, but for an opening alone: a client that has seen nothing can be served again.
    """
    usage = usage or Usage()
    pending = b""
    ready: list[bytes] = []
    async for chunk in chunks:
        *events, pending = (pending + chunk).split(sse.SEPARATOR)
        failure: RouterError | None = None
        for event in events:
            event += sse.SEPARATOR
            try:
                rewritten = _rewrite_event(event, cached_tokens, worker, usage)
            except RouterError as error:
                failure = error
                break
            if rewritten:
                ready.append(rewritten)
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
    raise worker_failed(worker, "the connection ended before the answer was complete")


def _rewrite_event(event: bytes, cached_tokens: int, worker: str, usage: Usage) -> bytes:
    """The event as the client gets it; empty when it is not for the client.

    Raises:
        RouterError: it is an error, or ends an answer that the worker gave up.
    """
    if event.startswith(_ERROR):
        raise _reported(event, worker)
    if _ABORTED in event:
        raise worker_failed(worker, "stopped before the answer was complete")
    if not any(key in event for key in _REWRITTEN):
        return event
    data = _object(sse.data_of(event), worker)
    _read_usage(data, usage)
    if data.get("usage") and not data.get("choices") and not usage.shown:
        return b""
    return sse.event(dump(_rewrite(data, cached_tokens)))


def _reported(event: bytes, worker: str) -> RouterError:
    """What the client is told of an error in the stream."""
    data = sse.data_of(event)
    try:
        error = json.loads(data)["error"]
    except ValueError:
        error = None
    code = error.get("code") if isinstance(error, dict) else None
    return worker_refused(worker, code if isinstance(code, int) else 500, data)


def _read_usage(answer: dict[str, Any], usage: Usage) -> None:
    reported = answer.get("usage")
    tokens = reported.get("completion_tokens") if isinstance(reported, dict) else None
    if isinstance(tokens, int):
        usage.output_tokens = tokens


def _rewrite(answer: dict[str, Any], cached_tokens: int) -> dict[str, Any]:
    for field in _INTERNAL:
        answer.pop(field, None)
    if isinstance(usage := answer.get("usage"), dict) and usage:
        details = usage.get("prompt_tokens_details")
        details = dict(details) if isinstance(details, dict) else {}
        details.pop("created_cache_tokens", None)
        usage["prompt_tokens_details"] = details | {"cached_tokens": cached_tokens}
    return answer


def _object(raw: bytes, worker: str) -> dict[str, Any]:
    """Raises RouterError (502) when it is none."""
    try:
        found = json.loads(raw)
    except ValueError:
        raise worker_failed(worker, "sent an answer that is not JSON") from None
    if not isinstance(found, dict):
        raise worker_failed(worker, "sent an answer that is not a JSON object")
    return found


def dump(value: Mapping[str, Any]) -> bytes:
    """An answer, or what an event of one says, as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
