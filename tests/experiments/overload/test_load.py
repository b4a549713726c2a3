import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from experiments.handoff_cost.client import MeasurementFailed
from experiments.overload.load import Clients


class Router:
    """Answers as many calls at a time as it has `room` for."""

    def __init__(self, room: int, event: bytes = b'data: {"choices": []}\n\n') -> None:
        self.room = room
        self.most = 0
        self._event = event
        self._running = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert body["stream"]
        assert 64 <= len(body["prompt"]) <= 256
        if self._running >= self.room:
            return web.json_response({}, status=429, headers={"retry-after": "3"})
        self._running += 1
        self.most = max(self.most, self._running)
        response = web.StreamResponse(headers={"x-prefillshare-queue-ms": "250.0"})
        await response.prepare(request)
        await asyncio.sleep(0.02)
        await response.write(self._event + b"data: [DONE]\n\n")
        self._running -= 1
        return response


async def clients_of(router: Router) -> AsyncIterator[Clients]:
    app = web.Application()
    app.router.add_post("/v1/completions", router.complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    async with aiohttp.ClientSession() as http:
        yield Clients(http, f"http://{host}:{port}", "m", seed=1)
    await runner.cleanup()


async def test_a_closed_loop_has_so_many_calls_at_a_time() -> None:
    router = Router(room=3)
    async for clients in clients_of(router):
        answers = await clients.closed(3, 0.2)
        assert router.most == 3
        assert {answer.status for answer in answers} == {200}
        assert all(16 <= answer.tokens <= 64 and answer.waited_s == 0.25 for answer in answers)
        assert all(answer.first_token and answer.first_token <= answer.ended for answer in answers)


async def test_an_open_loop_goes_on_whatever_becomes_of_its_calls() -> None:
    router = Router(room=1)
    async for clients in clients_of(router):
        answers = await clients.open(300.0, 0.5)
        assert 100 < len(answers) < 200
        refused = [answer for answer in answers if answer.status == 429]
        assert {answer.retry_after for answer in refused} == {3}
        assert 0 < len(answers) - len(refused) <= 26


async def test_a_broken_stream_is_no_answer() -> None:
    async for clients in clients_of(Router(1, b'data: {"error": {}}\n\n')):
        with pytest.raises(MeasurementFailed):
            await clients.closed(1, 0.1)
