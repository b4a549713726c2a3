import asyncio
import json

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from experiments.hostile import honest
from experiments.hostile.honest import Session, play, streamed


def event(content: str | None) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": content}}]}) + "\n\n"


def test_a_streams_text_is_put_together_and_a_bad_end_shows() -> None:
    body = event(None) + event("sup") + event("per")
    assert streamed(body + "data: [DONE]\n\n") == "supper"
    assert streamed(body) != "supper"
    broken = streamed(body + 'data: {"error": {"code": "x"}}\n\n' + "data: [DONE]\n\n")
    assert "then" in broken
    assert streamed("") == " (then nothing)"


async def test_a_call_that_is_refused_for_ever_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"code": "overloaded"}}, status=503)

    monkeypatch.setattr(honest, "_RETRY_S", 0.01)
    monkeypatch.setattr(honest, "_PATIENCE_S", 0.1)
    app, stop = web.Application(), asyncio.Event()
    app.router.add_post("/v1/chat/completions", refuse)
    session = Session("honest-0", "heron", ([{"role": "user", "content": "Who?"}],), ("The keeper.",))
    stop.set()
    async with TestServer(app) as server, aiohttp.ClientSession() as http, asyncio.timeout(10):
        played = await play(http, str(server.make_url("")).rstrip("/"), "m", [session], stop)
    assert len(played.wrong) == 1
    assert "503" in played.wrong[0]
    assert played.refused["overloaded"] > 1
