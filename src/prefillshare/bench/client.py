"""One streamed call, and when its tokens came."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are seconds on perf_counter's clock. A failed call has an `error`, and what came before it.

    `cached_tokens` is how much of the prompt the prefill found in its cache, `queue_s` how long the call waited in the
    router and `prefill_s` how long its first leg took, as the server tells them; None where it does not. `pieces` are
    the events with text that came, each of at least a token; `output_tokens` is told at the end alone.
    """

    began: float
    first: float | None
    ended: float
    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    pieces: int = 0
    queue_s: float | None = None
    prefill_s: float | None = None
    error: str | None = None


def open_client(api_key: str) -> aiohttp.ClientSession:
    # A new connection for every call: a server closes an idle one after some seconds, perhaps while it is used again.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"authorization": f"Bearer {api_key}"}
    return aiohttp.ClientSession(connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=None))


async def call(
    http: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    session: str,
    cut: Callable[[Answer], None] = lambda answer: None,
) -> Answer:
    """Streams a chat completion to its end. Failures are told in the answer, not raised.

    Args:
        cut: hears what had come by then if the call is cancelled.
    """
    reading = _Reading(perf_counter())
    error = None
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body, headers={"x-session-id": session}) as response:
            reading.heads = response.headers
            if response.status != 200:
                error = f"HTTP {response.status}: {(await response.text())[:300]}"
            else:
                async for line in response.content:
                    reading.take(line, perf_counter())
                error = reading.error if reading.done or reading.error else "the stream broke off"
    except (aiohttp.ClientError, ValueError, OSError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    except asyncio.CancelledError:
        cut(reading.answer(perf_counter(), "cut off"))
        raise
    return reading.answer(perf_counter(), error)


class _Reading:
    def __init__(self, began: float) -> None:
        self.done = False
        self.error: str | None = None
        self.heads: Mapping[str, str] = {}
        self._began = began
        self._first: float | None = None
        self._text: list[str] = []
        self._pieces = 0
        self._usage: dict[str, Any] = {}

    def take(self, line: bytes, now: float) -> None:
        if not line.startswith(b"data: "):
            return
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = str(event["error"])[:300]
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices", ()):
            content = choice["delta"].get("content")
            # The first event names the role alone; a token may also be one that shows as no text.
            if self._first is None and content is not None and (content or choice.get("finish_reason")):
                self._first = now
            self._pieces += bool(content)
            self._text.append(content or "")

    def answer(self, ended: float, error: str | None) -> Answer:
        details = self._usage.get("prompt_tokens_details") or {}
        return Answer(
            began=self._began,
            first=self._first,
            ended=ended,
            text="".join(self._text),
            pieces=self._pieces,
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=self._usage.get("completion_tokens", 0),
            queue_s=self._told("queue"),
            prefill_s=self._told("prefill"),
            error=error,
        )

    def _told(self, what: str) -> float | None:
        milliseconds = self.heads.get(f"x-prefillshare-{what}-ms")
        return None if milliseconds is None else float(milliseconds) / 1000
