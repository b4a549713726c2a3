import asyncio
import re

import pytest
from aiohttp.test_utils import TestServer

from prefillshare.bench.client import Answer, call, open_client
from tests.bench.fake_server import FakeServer

BODY = {"model": "m", "messages": [], "max_tokens": 3}


async def answered(fake: FakeServer) -> Answer:
    async with TestServer(fake.app()) as server, open_client("key") as http:
        return await call(http, str(server.make_url("")).rstrip("/"), BODY, "s-1")


async def test_an_answer_has_its_times_and_counts() -> None:
    fake = FakeServer(delay_s=0.05)
    answer = await answered(fake)
    assert (answer.text, answer.error) == ("w0 w1 w2 ", None)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (100, 64, 3)
    assert answer.first is not None
    # The event that names the role comes at once and is no token.
    assert answer.first - answer.began >= 0.05
    assert answer.ended >= answer.first
    assert fake.sessions == ["s-1"]


async def test_what_a_router_tells_of_a_calls_time_is_kept() -> None:
    answer = await answered(FakeServer())
    assert (answer.queue_s, answer.prefill_s) == (0.25, 1.5005)
    plain = await answered(FakeServer(routes=False))
    assert (plain.queue_s, plain.prefill_s) == (None, None)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [("refuses", "HTTP 429: .*too busy"), ("fails", "out of luck"), ("breaks off", "the stream broke off")],
)
async def test_a_failure_is_told(behaviour: str, error: str) -> None:
    answer = await answered(FakeServer(behaviour))
    assert answer.error is not None
    assert re.search(error, answer.error)


async def test_nobody_there_is_a_failure() -> None:
    async with open_client("key") as http:
        answer = await call(http, "http://127.0.0.1:9", BODY, "s")
    assert answer.error is not None
    assert answer.error.startswith("ClientConnectorError")


async def test_what_had_come_of_a_call_is_told_when_it_is_cut() -> None:
    cut: list[Answer] = []
    fake = FakeServer("hangs")
    async with TestServer(fake.app()) as server, open_client("key") as http:
        url = str(server.make_url("")).rstrip("/")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(http, url, BODY, "s", cut.append), 0.3)
    (answer,) = cut
    assert (answer.text, answer.pieces, answer.output_tokens, answer.error) == ("w0 w1 ", 2, 0, "cut off")
    assert answer.first is not None
    assert answer.ended - answer.began >= 0.25 > answer.first - answer.began  # `call` begins a little later
    assert answer.queue_s == 0.25
