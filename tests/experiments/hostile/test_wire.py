import asyncio
from collections.abc import Awaitable, Callable

import pytest

from experiments.hostile.wire import Case, Piece, request, send

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


async def exchange(handler: Handler, case: Case, patience_s: float = 5.0):  # type: ignore[no-untyped-def]
    async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
        return await send(case, "127.0.0.1", server.sockets[0].getsockname()[1], patience_s)


async def _answers_and_closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER + ANSWER.replace(b"200", b"404"))
    await writer.drain()
    writer.close()


async def _says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


GET = Case("x", request("GET", "/", {}))


async def test_every_answer_on_the_connection_is_seen() -> None:
    found = await exchange(_answers_and_closes, GET)
    assert (found.statuses, found.ended) == ([200, 404], "server")


async def test_a_server_that_never_answers_is_told_from_a_client_that_leaves() -> None:
    assert (await exchange(_says_nothing, GET, patience_s=0.3)).ended == "nobody"
    leaves = Case("x", GET.pieces, then="leave", leave_s=0.1)
    assert (await exchange(_says_nothing, leaves)).ended == "client"
    assert (await exchange(_says_nothing, Case("x", GET.pieces, then="half_close"))).ended == "server"


@pytest.mark.parametrize("headers", [{}, {"content-length": "7"}, {"transfer-encoding": "chunked"}])
def test_a_request_states_its_length_unless_it_says_something_else(headers: dict[str, str]) -> None:
    head, body = request("POST", "/x", headers, [Piece(b"ab", 3)])
    assert (b"content-length: 6\r\n" in head.unit) is not bool(headers)
    assert body.unit * body.times == b"ababab"
    assert b"connection: close" in head.unit
