"""The router's surface: an ASGI application in the shape of OpenAI's API."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.router.about import About, check_operator
from prefillshare.router.admin.api import admin_routes
from prefillshare.router.assembly import Assembly
from prefillshare.router.drain import Drain
from prefillshare.router.endpoint import CompletionEndpoint
from prefillshare.router.errors import RouterError, internal
from prefillshare.router.fleet import Listener
from prefillshare.router.gate import Gate
from prefillshare.router.log_format import logging_as
from prefillshare.router.route import ModelRoute
from prefillshare.router.status.page import status_routes
from prefillshare.router.turned_away import TurnedAway
from prefillshare.router.worker_facts import WorkerFacts
from prefillshare.router_config import RouterConfig

MAX_BODY_BYTES = 8 * 2**20  # a prompt of a million tokens


def create_app(
    settings: RouterConfig,
    routes: Mapping[str, ModelRoute],
    workers: WorkerFacts,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    drain: Drain | None = None,
    turned_away: TurnedAway | None = None,
    listeners: Sequence[Listener] = (),
) -> Starlette:
    """The router as an ASGI application.

    Args:
        settings: keys, limits, timeouts and placement; host, port and connections are the server's business.
        routes: the decode modules by their names, which are the models that clients ask for; those at the start.
        workers: what they have in common; those that join later, too.
        max_body_bytes: longer request bodies are refused with a 413.
        drain: has it take no more calls, when that has begun.
        turned_away: counted by the server that the app is served by, for `/metrics`.
        listeners: are told of each worker that joins or leaves while the router runs.

    Startup asks every worker for its health once, so that the first request finds the workers that are up. Startup
    succeeds whatever they say; `/health` tells.

    The salts of tenants' caches hang on PREFILLSHARE_ROUTER_SECRET, or on a new secret: with the same one, a router
    that is started again finds what its tenants have in the workers' caches.

    Raises:
        UserError: a key is missing or cannot be read, `settings.placement` names a rule that does not exist or gives it
            what it does not take, or traces are asked for and OpenTelemetry is not installed or refuses a variable.
    """
    assembly = Assembly(
        settings,
        routes,
        workers,
        max_body_bytes=max_body_bytes,
        drain=drain,
        turned_away=turned_away,
        listeners=listeners,
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with assembly.running() as (app.state.services, app.state.admin):
            with logging_as(settings.log_format):
                yield

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", CompletionEndpoint("chat/completions"), methods=["POST"]),
            Route("/v1/completions", CompletionEndpoint("completions"), methods=["POST"]),
            *About(assembly.fleet, assembly.metrics, assembly.draining).routes(),
            *admin_routes(settings),
            *status_routes(assembly.board, check=check_operator),
        ],
        exception_handlers={
            RouterError: _router_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
        middleware=[Middleware(Gate, settings=settings, keyring=assembly.keyring, metrics=assembly.tenants)],
        lifespan=lifespan,
    )
    # A redirect would name the host that the client has sent, and have its body sent twice.
    app.router.redirect_slashes = False
    return app


_SURFACE = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /v1/models/{model}"


async def _router_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RouterError)
    return JSONResponse(error.body(), error.status, dict(error.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code in (404, 405):
        message += f". What clients may call: {_SURFACE}."
    return await _router_error(request, RouterError(error.status_code, message, headers=error.headers or {}))


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return await _router_error(request, internal())
