"""vLLM workers that answer at once, cheap enough not to be what is measured.

    python -m experiments.overhead.backend PREFILL_PORT DECODE_PORT ...

Prefill and decode ports alternate. Answers are canned bytes; of a request no more is looked at than its length, whether
it wants a stream, and for how many tokens its prompt and its answer count, which stands in the prompt.
"""

import asyncio
import json
import re
import sys
from collections import deque
from functools import cache, partial
from typing import cast

import uvloop

HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SIZES = re.compile(rb"sizes-(\d+)-(\d+)")
_STREAMED = re.compile(rb'"stream": ?true')


def sizes(prompt_tokens: int, answer_tokens: int) -> str:
    """The words in a prompt that tell a worker how long prompt and answer are."""
    return f"sizes-{prompt_tokens}-{answer_tokens}"


class Worker(asyncio.Protocol):
    """HTTP/1.1 with Content-Length and keep-alive, nothing else."""

    def __init__(self, prefills: bool) -> None:
        self._prefills = prefills
        self._received = bytearray()
        self._events: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._received, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < whole:
                return
            body = bytes(self._received[end + 4 : whole])
            del self._received[:whole]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        named = _SIZES.search(body)
        prompt, answer = (int(named[1]), int(named[2])) if named else (1, 1)
        if not body:
            self._transport.write(_whole(b"{}"))
        elif self._prefills:
            self._transport.write(prefilled(prompt, ids=b'"return_token_ids"' in body))
        elif _STREAMED.search(body):
            self._events.extend(streamed(answer))
            self._next_event()
        else:
            self._transport.write(answered(prompt, answer))

    def _next_event(self) -> None:
        """Each event on its own: a model makes its tokens one by one."""
        if self._events and not self._transport.is_closing():
            self._transport.write(self._events.popleft())
            asyncio.get_running_loop().call_soon(self._next_event)


@cache
def prefilled(prompt_tokens: int, *, ids: bool) -> bytes:
    """With the prompt's token ids for who asks for them, as in vLLM."""
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "base",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}],
        "usage": _usage(prompt_tokens, 1),
        "prompt_token_ids": [20_000 + index % 20_000 for index in range(prompt_tokens)] if ids else None,
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(-(-prompt_tokens // 128)))],
            "remote_engine_id": "engine",
            "remote_request_id": "chatcmpl-1",
            "remote_host": HOST,
            "remote_port": 5600,
            "tp_size": 1,
        },
    }
    return _whole(json.dumps(answer).encode())


@cache
def answered(prompt_tokens: int, answer_tokens: int) -> bytes:
    message = {"role": "assistant", "content": " word" * answer_tokens}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "module",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _usage(prompt_tokens, answer_tokens),
        "kv_transfer_params": None,
    }
    return _whole(json.dumps(answer).encode())


@cache
def streamed(answer_tokens: int) -> tuple[bytes, ...]:
    """The head of the answer with its opening event, an event a token, and what closes a stream."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    start = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "module"}

    def event(delta: dict[str, str], **more: object) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _chunk(b"data: " + json.dumps({**start, "choices": [choice], **more}).encode() + b"\n\n")

    words = [event({"content": " word"}) for _ in range(answer_tokens)]
    usage = {**start, "choices": [], "usage": _usage(1, answer_tokens)}
    last = _chunk(b"data: " + json.dumps(usage, separators=(",", ":")).encode() + b"\n\n")
    opening = event({"role": "assistant", "content": ""})
    return (head + opening, *words, last + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _usage(prompt_tokens: int, answer_tokens: int) -> dict[str, object]:
    total = prompt_tokens + answer_tokens
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens, "total_tokens": total}
    return {**counts, "prompt_tokens_details": {"cached_tokens": prompt_tokens // 2}}


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for number, port in enumerate(ports):
        prefills = number % 2 == 0
        await loop.create_server(partial(Worker, prefills), HOST, port)
    await loop.create_future()


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
