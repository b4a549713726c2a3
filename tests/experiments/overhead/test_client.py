"""Load and workers together: the client reads what the workers write, in one piece and in chunks."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from experiments.overhead.backend import HOST, serve
from experiments.overhead.client import SESSIONS, Failed, load, requests
from tests.deployment.fakes import free_ports


@pytest.fixture
async def serving() -> AsyncIterator[list[int]]:
    """The ports of two workers, which both listen."""
    ports = free_ports(2)
    server = asyncio.create_task(serve(ports))
    for port in ports:
        while not await listens(port):
            assert not server.done(), server.exception()
            await asyncio.sleep(0.01)
    yield ports
    server.cancel()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("stream", [False, True])
async def test_each_request_goes_to_both_legs(serving: list[int], stream: bool) -> None:
    prepared = requests("module", 300, 20, stream=stream)
    timings = await load(serving, prepared, at_once=3, seconds=5.0, most=50)
    assert len(timings.seconds) == 50
    assert 0 < min(timings.seconds) <= timings.wall < 5


async def test_an_answer_that_is_no_success_ends_the_measurement() -> None:
    (port,) = free_ports(1)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")

    async with await asyncio.start_server(refuse, HOST, port):
        with pytest.raises(Failed, match="503"):
            await load([port], requests("module", 10, 1, stream=False), at_once=1, seconds=5.0, most=1)


def test_a_prompt_has_its_length_and_sessions_differ() -> None:
    prepared = requests("module", 2000, 16, stream=False)
    assert len(set(prepared)) == SESSIONS
    body = json.loads(prepared[0].partition(b"\r\n\r\n")[2])
    assert len(body["messages"][1]["content"]) == 8000
