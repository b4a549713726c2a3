"""What a run finds at its end."""

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from experiments.chaos import run as run_module


async def test_a_worker_that_does_not_say_what_it_holds_holds_all(monkeypatch: Any) -> None:
    async def say(request: web.Request) -> web.StreamResponse:
        return web.Response(text="vllm:kv_cache_usage_perc 0.0\n")

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return await say(request)

    def server(metrics: Any) -> TestServer:
        app = web.Application()
        app.router.add_get("/metrics", metrics)
        return TestServer(app)

    monkeypatch.setattr(run_module, "_ASKING", aiohttp.ClientTimeout(total=0.3))
    async with (
        server(say) as good,
        server(hang) as bad,
        aiohttp.ClientSession() as http,
    ):
        urls = {"good": good.make_url(""), "hangs": bad.make_url(""), "gone": f"http://127.0.0.1:{unused_port()}"}
        workers = [
            SimpleNamespace(url=str(url).rstrip("/"), spec=SimpleNamespace(name=name)) for name, url in urls.items()
        ]
        local: Any = SimpleNamespace(workers=workers)
        assert await run_module._used(local, http) == {"hangs": 1.0, "gone": 1.0}
