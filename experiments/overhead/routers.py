"""The routers that run in Python, each as a process: ours, and what its ASGI stack costs without a router in it.

    python -m experiments.overhead.routers {ours,one-leg,two-legs} PORT --prefill URL ... --decode URL ...

`one-leg` passes a request's bytes to a decode worker and its answer back; `two-legs` first posts them to a prefill
worker and reads what it says. Neither looks at what it passes on. All three: starlette, uvicorn, aiohttp.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from prefillshare.router.app import create_app
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router.server import server_config
from prefillshare.router.worker_facts import WorkerFacts
from prefillshare.router_config import FlowConfig, LimitsConfig, RouterConfig

MODEL = "module"
FACTS = WorkerFacts(block_size=128, key="secret", max_num_seqs=None, kv_lease_s=30.0, pull_timeout_s=8.0)


def bare(prefill: str | None, decode: str) -> Starlette:
    """A reverse proxy; with `prefill` it posts there first."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http:
            app.state.http = http
            yield

    async def relay(request: Request) -> Response:
        http: aiohttp.ClientSession = request.app.state.http
        path, body = request.url.path, await request.body()
        headers = {"content-type": "application/json"}
        if prefill is not None:
            async with http.post(prefill + path, data=body, headers=headers) as first:
                await first.read()
        answer = await http.post(decode + path, data=body, headers=headers)
        if answer.content_type != "text/event-stream":
            return Response(await answer.read(), answer.status, media_type="application/json")

        async def chunks() -> AsyncIterator[bytes]:
            while chunk := await answer.content.readany():
                yield chunk

        return StreamingResponse(chunks(), answer.status, media_type="text/event-stream")

    async def health(request: Request) -> Response:
        return Response()

    routes = [Route("/v1/{path:path}", relay, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def ours(prefill: list[str], decode: list[str]) -> Starlette:
    route = ModelRoute(
        "base",
        Pool("prefill", [Worker(f"prefill-{number}", "prefill", url) for number, url in enumerate(prefill)]),
        Pool("decode/module", [Worker(f"decode-{number}", "decode", url) for number, url in enumerate(decode)]),
    )
    # Workers that answer at once are never full: calls pass flow control, and none waits in it.
    roomy = FlowConfig(prefill_tokens=10**9, decode_tokens=10**9, decode_calls=10**6)
    return create_app(RouterConfig(flow=roomy), {MODEL: route}, FACTS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=["ours", "one-leg", "two-legs"])
    parser.add_argument("port", type=int)
    parser.add_argument("--prefill", nargs="+", required=True)
    parser.add_argument("--decode", nargs="+", required=True)
    options = parser.parse_args()
    if options.system == "ours":
        app = ours(options.prefill, options.decode)
    else:
        app = bare(options.prefill[0] if options.system == "two-legs" else None, options.decode[0])
    config = server_config(app, LimitsConfig(), port=options.port, log_config=None, access_log=False)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
