"""The load: prepared requests over kept connections, each sent when the one before it has been answered whole."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import cast

from experiments.overhead.backend import HOST, sizes

SESSIONS = 64  # prompts in turn; enough that a router's tables hold more than one
_CHARACTERS_A_TOKEN = 4
_SENTENCE = " The ferry leaves at nine, and the baker rows to the other side before the lamp is lit."


class Failed(Exception):
    """An answer that is not a success."""


@dataclass(slots=True)
class Timings:
    """Of one stretch of load. `seconds` by request, in order of their ends."""

    wall: float = 0.0
    seconds: list[float] = field(default_factory=list)


def requests(model: str, prompt_tokens: int, answer_tokens: int, *, stream: bool) -> list[bytes]:
    """A chat request of each session, as bytes. Sessions begin alike and go on each in its own way."""
    found = []
    for session in range(SESSIONS):
        text = f"{sizes(prompt_tokens, answer_tokens)} of session {session}." + _SENTENCE * prompt_tokens
        messages = [
            {"role": "system", "content": "You keep the logbook."},
            {"role": "user", "content": text[: prompt_tokens * _CHARACTERS_A_TOKEN]},
        ]
        body = {"model": model, "messages": messages, "max_tokens": answer_tokens, "temperature": 0, "stream": stream}
        raw = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\n"
            f"x-session-id: session-{session}\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        found.append(head.encode() + raw)
    return found


class _Connection(asyncio.Protocol):
    """Knows an answer's end by its Content-Length, or by the chunk that closes it."""

    def __init__(self) -> None:
        self._done: asyncio.Future[None] | None = None
        self._received = bytearray()
        self._whole = 0  # bytes of the answer under way; 0: not known yet, -1: in chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(Failed(f"the connection was closed: {exc!r}"))

    def ask(self, request: bytes) -> asyncio.Future[None]:
        self._done = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._whole = 0
        self.transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._whole == 0:
            self._read_head()
        ended = self._received.endswith(b"0\r\n\r\n") if self._whole < 0 else len(self._received) >= self._whole > 0
        if ended and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        if not head.startswith(b"http/1.1 200") and self._done is not None and not self._done.done():
            self._done.set_exception(Failed(bytes(self._received[:500]).decode(errors="replace")))
        _, found, after = head.partition(b"\r\ncontent-length:")
        self._whole = end + 4 + int(after.split(b"\r\n")[0]) if found else -1


async def _connect(port: int) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, HOST, port)
    return connection


async def load(
    ports: Sequence[int], prepared: Sequence[bytes], *, at_once: int, seconds: float, most: int = 10**9
) -> Timings:
    """Requests to the first port, each then to the next ones, `at_once` at a time, until time or count is used up.

    With two ports a request's time is that of both legs, one behind the other.

    Raises:
        Failed: an answer is not a 200, or a connection ends.
    """
    timings = Timings()
    deadline = time.perf_counter() + seconds
    turns: Iterator[bytes] = cycle(prepared)
    begun = 0

    async def one(connections: list[_Connection]) -> None:
        nonlocal begun
        while begun < most and (started := time.perf_counter()) < deadline:
            begun += 1
            request = next(turns)
            for connection in connections:
                await connection.ask(request)
            timings.seconds.append(time.perf_counter() - started)

    everyone = [[await _connect(port) for port in ports] for _ in range(at_once)]
    started = time.perf_counter()
    try:
        await asyncio.gather(*map(one, everyone))
    finally:
        for connection in [connection for some in everyone for connection in some]:
            connection.transport.close()
    timings.wall = time.perf_counter() - started
    return timings
