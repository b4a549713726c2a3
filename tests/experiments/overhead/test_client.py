"""Load and workers together: the client reads what the workers write, in one piece and in chunks."""

import asyncio
import json
import socket

import pytest

from experiments.overhead.backend import HOST, serve
from experiments.overhead.client import SESSIONS, Failed, load, requests


@pytest.fixture
def ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, 0))
        other.bind((HOST, 0))
        return [one.getsockname()[1], other.getsockname()[1]]


@pytest.mark.parametrize("stream", [False, True])
async def test_each_request_goes_to_both_legs(ports: list[int], stream: bool) -> None:
    server = asyncio.create_task(serve(ports))
    await asyncio.sleep(0.2)
    prepared = requests("module", 300, 20, stream=stream)
    timings = await load(ports, prepared, at_once=3, seconds=5.0, most=50)
    assert len(timings.seconds) == 50
    assert 0 < min(timings.seconds) <= timings.wall < 5
    server.cancel()


async def test_an_answer_that_is_no_success_ends_the_measurement(ports: list[int]) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")

    async with await asyncio.start_server(refuse, HOST, ports[0]):
        with pytest.raises(Failed, match="503"):
            await load(ports[:1], requests("module", 10, 1, stream=False), at_once=1, seconds=5.0, most=1)


def test_a_prompt_has_its_length_and_sessions_differ() -> None:
    prepared = requests("module", 2000, 16, stream=False)
    assert len(set(prepared)) == SESSIONS
    body = json.loads(prepared[0].partition(b"\r\n\r\n")[2])
    assert len(body["messages"][1]["content"]) == 8000
