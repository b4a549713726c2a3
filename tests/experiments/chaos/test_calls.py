import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from experiments.chaos.calls import DOCUMENTED, Outcome, make_call
from experiments.references import Call

ANSWER = [1, 2, 3]
CALL = Call("sql", [7, 8], ANSWER)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome(200, [1, 2, 3], finished=True), "served"),
        (Outcome(200, [1, 2, 4], finished=True), "wrong"),
        (Outcome(200, [1, 2], finished=True), "wrong"),  # cut short and called complete
        (Outcome(200, [9], code="worker_lost"), "wrong"),  # whatever came after it
        (Outcome(None, [], hung=True), "hung"),
        (Outcome(200, [1], left=True), "left"),
        (Outcome(502, [], code="worker_lost"), "failed"),
        (Outcome(200, [1], code="worker_lost"), "failed"),
        (Outcome(200, [], code="worker_lost"), "undocumented"),  # before a token it must have a status of its own
        (Outcome(503, [], code="worker_lost"), "undocumented"),
        (Outcome(500, [], code="internal_error"), "undocumented"),
        (Outcome(200, [1]), "undocumented"),  # broke off without a word
        (Outcome(None, [], code="ServerDisconnectedError"), "undocumented"),
    ],
)
def test_only_right_tokens_and_documented_errors_are_good(outcome: Outcome, verdict: str) -> None:
    assert outcome.verdict(ANSWER) == verdict


def test_every_error_that_counts_as_documented_is() -> None:
    docs = Path(__file__).parents[3] / "docs"
    lines = [line for page in ("router.md", "flow.md") for line in (docs / page).read_text().splitlines()]
    for code, status in DOCUMENTED.items():
        assert any(line.startswith(f"| {status} | `{code}` |") for line in lines), code


async def ask(answer: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: object) -> Outcome:
    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as http:
            return await make_call(http, url, CALL, session="s", **({"stream": True, "deadline_s": 5.0} | options))  # type: ignore[arg-type]
    finally:
        await runner.cleanup()


def streaming(*events: object, pause_s: float = 0.0) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(f"data: {event if event == '[DONE]' else json.dumps(event)}\n\n".encode())
            await asyncio.sleep(pause_s)
        return response

    return answer


def tokens(*ids: int) -> dict[str, object]:
    return {"choices": [{"token_ids": list(ids)}]}


ERROR = {"error": {"code": "worker_lost", "message": ""}}


async def test_a_stream_is_read_to_its_end_or_its_error() -> None:
    assert (await ask(streaming(tokens(1, 2), tokens(3), "[DONE]"))).verdict(ANSWER) == "served"
    broken = await ask(streaming(tokens(1), ERROR))
    assert (broken.tokens, broken.code, broken.verdict(ANSWER)) == ([1], "worker_lost", "failed")
    assert (await ask(streaming(tokens(1)))).verdict(ANSWER) == "undocumented"


async def test_a_client_leaves_and_a_deadline_ends_a_call() -> None:
    left = await ask(streaming(tokens(1), tokens(2), tokens(3), "[DONE]", pause_s=0.2), leave_after=1)
    assert (left.tokens, left.verdict(ANSWER)) == ([1], "left")
    hung = await ask(streaming(tokens(1), tokens(2), pause_s=0.3), deadline_s=0.2)
    assert (hung.tokens, hung.verdict(ANSWER)) == ([1], "hung")


async def test_an_answer_that_is_not_streamed_is_read_too() -> None:
    async def whole(request: web.Request) -> web.Response:
        assert (await request.json())["max_tokens"] == len(ANSWER)
        assert request.headers["x-session-id"] == "s"
        return web.json_response(tokens(1, 2, 3))

    async def refused(request: web.Request) -> web.Response:
        return web.json_response(ERROR, status=502)

    assert (await ask(whole, stream=False)).verdict(ANSWER) == "served"
    assert (await ask(refused, stream=False)).verdict(ANSWER) == "failed"
    assert (await ask(refused)).verdict(ANSWER) == "failed"
