"""An OpenAI server and a vLLM worker's metrics, as far as the benchmark can tell."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from prefillshare.bench.host import Hosted, HostedWorker


@dataclass
class FakeServer:
    """Answers with as many words as are asked for. `behaviour` is changed by tests."""

    behaviour: str = "ok"
    delay_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    metrics: str = ""
    routes: bool = True  # as a router does, it tells how long the parts of a call took

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/metrics", self.report)
        return app

    async def report(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.sessions.append(request.headers["x-session-id"])
        if self.behaviour == "refuses":
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._stream(request, body)
        finally:
            self.at_once -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        times = {"x-prefillshare-queue-ms": "250.0", "x-prefillshare-prefill-ms": "1500.5"}
        response = web.StreamResponse(headers={"content-type": "text/event-stream"} | (times if self.routes else {}))
        await response.prepare(request)

        async def send(event: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        await send({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        await asyncio.sleep(self.delay_s)
        for number in range(body["max_tokens"]):
            if self.behaviour == "hangs" and number == body["max_tokens"] - 1:
                await asyncio.sleep(60)
            await send({"choices": [{"delta": {"content": f"w{number} "}, "finish_reason": None}]})
        if self.behaviour == "fails":
            await send({"error": {"message": "out of luck"}})
        if self.behaviour == "breaks off":
            return response
        usage = {"prompt_tokens": 100, "completion_tokens": body["max_tokens"]}
        await send({"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 64}}})
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def hosted_by(server: FakeServer, *, models: int, role: str) -> AsyncIterator[Hosted]:
    """A system whose only worker is the server."""
    async with TestServer(server.app()) as started:
        url = str(started.make_url("")).rstrip("/")
        worker = HostedWorker(name=role[0], role=role, url=url, pid=os.getpid(), core=0, kv_tokens=5000)
        yield Hosted(
            endpoints={f"model-{number}": url for number in range(models)},
            api_key="",
            workers=[worker],
            pid=os.getpid(),
            dtype="float32",
            kv_bytes_per_token=1000,
        )
