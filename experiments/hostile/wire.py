"""One hostile exchange on a raw socket: what is sent byte by byte, and everything that comes back."""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Then = Literal["wait", "leave", "half_close"]

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_CLOSE = {"connection": "close"}  # so that the end of the answer is the end of the connection
_READ = 65536


@dataclass(frozen=True, slots=True)
class Piece:
    """`unit` `times` times: large bodies are written down as small ones."""

    unit: bytes
    times: int = 1

    def __len__(self) -> int:
        return len(self.unit) * self.times


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent, in pieces with `pause_s` between them, and what is done then.

    `wait` reads until the server closes; `leave` closes `leave_s` after the last piece; `half_close` ends the sending
    side and then waits.
    """

    kind: str
    pieces: tuple[Piece, ...]
    then: Then = "wait"
    pause_s: float = 0.0
    leave_s: float = 0.0
    open_to: frozenset[int] = frozenset()  # if not empty: the only statuses that may come


@dataclass(slots=True)
class Exchange:
    """What came of a case. `ended` says who closed: the server, this client, or nobody in time."""

    case: Case
    received: bytes = b""
    ended: Literal["server", "client", "nobody"] = "server"
    seconds: float = 0.0
    statuses: list[int] = field(default_factory=list)


def request(
    method: str, path: str, headers: Mapping[str, str] | Iterable[tuple[str, str]], body: Iterable[Piece] = ()
) -> tuple[Piece, ...]:
    """A request with its length, whose answer closes the connection. Headers are sent as given, in order."""
    body = tuple(body)
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in given}
    given += [] if "host" in names else [("host", "router")]
    given += [] if "connection" in names else list(_CLOSE.items())
    if body and "content-length" not in names and "transfer-encoding" not in names:
        given.append(("content-length", str(sum(map(len, body)))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given)]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return (Piece(head), *body)


async def send(case: Case, host: str, port: int, patience_s: float) -> Exchange:
    """Carries a case out. Never raises for what the server does; without an end by then it is `nobody`."""
    exchange = Exchange(case)
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(host, port)
    reading = asyncio.create_task(_read(reader, exchange))
    try:
        async with asyncio.timeout(patience_s):
            await _write(case, writer, reading)
            if case.then == "leave":
                await asyncio.wait({reading}, timeout=case.leave_s)
                exchange.ended = "server" if reading.done() else "client"
            else:
                await reading
    except TimeoutError:
        exchange.ended = "nobody"
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.transport.abort()
    exchange.seconds = time.monotonic() - started
    exchange.statuses = [int(code) for code in _STATUS.findall(exchange.received)]
    return exchange


async def _write(case: Case, writer: asyncio.StreamWriter, reading: asyncio.Task[None]) -> None:
    try:
        for number, piece in enumerate(case.pieces):
            if number and case.pause_s:
                await asyncio.wait({reading}, timeout=case.pause_s)
            if reading.done():  # it has answered and closed: the rest would go nowhere
                return
            writer.write(piece.unit * piece.times)
            await writer.drain()
        if case.then == "half_close":
            writer.write_eof()
    except (ConnectionError, OSError):
        pass  # closed while we were sending; what it said before that is read


async def _read(reader: asyncio.StreamReader, exchange: Exchange) -> None:
    try:
        while chunk := await reader.read(_READ):
            exchange.received += chunk
    except (ConnectionError, OSError):
        pass
