"""The router's surface: an ASGI application in the shape of OpenAI's API."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.config import RouterConfig
from prefillshare.router.accounting import Ledger
from prefillshare.router.endpoint import CompletionEndpoint, Services
from prefillshare.router.errors import RouterError, internal, model_not_found
from prefillshare.router.health import HealthMonitor
from prefillshare.router.metrics import Metrics
from prefillshare.router.placement import Placement
from prefillshare.router.relay import Relay, open_http
from prefillshare.router.route import ModelRoute, pools_of

MAX_BODY_BYTES = 8 * 2**20  # a prompt of a million tokens


def create_app(
    settings: RouterConfig,
    routes: Mapping[str, ModelRoute],
    *,
    block_size: int,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """The router as an ASGI application.

    Args:
        settings: timeouts; host and port are the server's business.
        routes: the decode modules by their names, which are the models that clients ask for.
        block_size: of the prefill workers' KV cache, in tokens; for attributing reuse.
        max_body_bytes: longer request bodies are refused with a 413.

    Startup asks every worker for its health once, so that the first request finds the workers that are up. Startup
    succeeds whatever they say; `/health` tells.
    """
    pools = pools_of(routes.values())
    metrics = Metrics(pools)
    models = tuple(routes)
    created = int(time.time())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_http(settings) as http:
            monitor = HealthMonitor(http, pools)
            await monitor.check_all()
            watching = asyncio.create_task(monitor.run())
            relay = Relay(http, settings, Placement(routes))
            app.state.services = Services(settings, relay, Ledger(block_size), metrics, models, max_body_bytes)
            yield
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def card(model: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": created, "owned_by": "prefillshare"}

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card(model) for model in models]})

    async def get_model(request: Request) -> Response:
        model = request.path_params["model"]
        if model not in models:
            raise model_not_found(model, sorted(models))
        return JSONResponse(card(model))

    async def health(request: Request) -> Response:
        """200 when every model can be served."""
        ready = all(pool.up() for pool in pools)
        body = {
            "status": "ok" if ready else "unavailable",
            "pools": {pool.name: pool.report() for pool in pools},
            "models": {
                model: {"prefill": route.prefill.name, "decode": route.decode.name} for model, route in routes.items()
            },
        }
        return JSONResponse(body, 200 if ready else 503)

    async def prometheus(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", CompletionEndpoint("chat/completions"), methods=["POST"]),
            Route("/v1/completions", CompletionEndpoint("completions"), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{model:path}", get_model),
            Route("/health", health),
            Route("/metrics", prometheus),
        ],
        exception_handlers={
            RouterError: _router_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
        lifespan=lifespan,
    )


async def _router_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RouterError)
    return JSONResponse(error.body(), error.status, dict(error.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _router_error(request, RouterError(error.status_code, message, headers=error.headers or {}))


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return await _router_error(request, internal())
