"""The router's log, as text or as one JSON object a line."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from prefillshare.router.privacy import failure_text
from prefillshare.router.record import CallRecord

LOG = logging.getLogger("prefillshare.router")

_TEXT = "request=%s model=%s prefill=%s decode=%s status=%d reason=%s ms=%.0f"


def log_call(call: CallRecord) -> None:
    """The one line of a call: `_TEXT`, or with `JsonFormatter` all of `call_fields`."""
    LOG.info(
        _TEXT,
        call.request_id,
        call.model,
        call.prefill_worker or "-",
        call.decode_worker or "-",
        call.status,
        call.reason or "-",
        call.seconds * 1000,
        extra={"call": call},
    )


def call_fields(call: CallRecord) -> dict[str, Any]:
    """A call as JSON; durations in seconds. What is not known is left out."""
    tokens = call.tokens
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "endpoint": call.endpoint,
        "model": call.model,
        "prefill_worker": call.prefill_worker,
        "decode_worker": call.decode_worker,
        "status": call.status,
        "reason": call.reason,
        "stream": call.stream,
        "retries": call.retries or None,
        "prefilled_again": call.prefilled_again or None,
        "duration_s": _rounded(call.seconds),
        "prefill_s": _rounded(call.prefill_seconds),
        "first_token_s": _rounded(call.first_token_seconds),
        "per_output_token_s": _rounded(call.seconds_per_output_token()),
        "prompt_tokens": tokens and tokens.prompt,
        "computed_tokens": tokens and tokens.computed,
        "reused_tokens": tokens and tokens.reused,
        "reused_from_others_tokens": tokens and tokens.reused_from_others,
        "output_tokens": call.output_tokens,
        "sent_bytes": call.sent_bytes,
    }
    return {name: value for name, value in fields.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, and a call's fields or a `message`.

    Of an exception it gives the type and where it came from, and not its message, which can quote a prompt.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower()}
        call = record.__dict__.get("call")
        if isinstance(call, CallRecord):
            line |= {"event": "call"} | call_fields(call)
        else:
            line |= {"event": "message", "message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = failure_text(record.exc_info[1], with_messages=False)
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def logging_as(log_format: Literal["text", "json"], stream: TextIO | None = None) -> Iterator[None]:
    """While the block runs, the router's log goes to `stream` (standard output) as JSON lines, and nowhere else.

    With "text" nothing changes: the lines go where the process has its logging go, with `prefillshare serve` to stderr.
    """
    if log_format == "text":
        yield
        return
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter())
    level, propagate = LOG.level, LOG.propagate
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
        LOG.propagate = propagate


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
