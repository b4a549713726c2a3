"""The router's surface: an ASGI application in the shape of OpenAI's API."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.access import load_keys
from prefillshare.router.accounting import Ledger
from prefillshare.router.admin.api import Admin, admin_routes
from prefillshare.router.breaker import Breaker
from prefillshare.router.divergence import Divergence
from prefillshare.router.drain import Drain
from prefillshare.router.endpoint import CompletionEndpoint, Services
from prefillshare.router.errors import RouterError, internal, model_not_found
from prefillshare.router.extension.extension import Extension
from prefillshare.router.extension.metrics import ExtensionMetrics
from prefillshare.router.fleet import Change, Fleet, Listener
from prefillshare.router.flow.capacity import Capacities, keep_asking
from prefillshare.router.flow.control import FlowControl
from prefillshare.router.flow.metrics import FlowMetrics
from prefillshare.router.gate import Gate
from prefillshare.router.health import HealthMonitor
from prefillshare.router.log_format import logging_as
from prefillshare.router.metrics import Metrics
from prefillshare.router.observer import Observer
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Worker
from prefillshare.router.relay import Relay, open_http
from prefillshare.router.route import ModelRoute
from prefillshare.router.status.board import Board
from prefillshare.router.status.page import status_routes
from prefillshare.router.tenant_metrics import TenantMetrics
from prefillshare.router.tenants import SECRET_VARIABLE, make_keyring
from prefillshare.router.tracing import check_installed, open_tracing
from prefillshare.router_config import RouterConfig

MAX_BODY_BYTES = 8 * 2**20  # a prompt of a million tokens


def create_app(
    settings: RouterConfig,
    routes: Mapping[str, ModelRoute],
    *,
    block_size: int,
    max_body_bytes: int = MAX_BODY_BYTES,
    worker_key: str | None = None,
    drain: Drain | None = None,
    listeners: Sequence[Listener] = (),
    max_num_seqs: int | None = None,
) -> Starlette:
    """The router as an ASGI application.

    Args:
        settings: keys, limits, timeouts and placement; host, port and connections are the server's business.
        routes: the decode modules by their names, which are the models that clients ask for; those at the start.
        block_size: of the workers' KV caches, in tokens; for attributing reuse and placing the decode leg.
        max_body_bytes: longer request bodies are refused with a 413.
        worker_key: the secret that the workers ask for.
        drain: has it take no more calls, when that has begun.
        listeners: are told of each worker that joins or leaves while the router runs.
        max_num_seqs: how many calls a worker runs at a time, where that is known; more would queue inside it.

    Startup asks every worker for its health once, so that the first request finds the workers that are up. Startup
    succeeds whatever they say; `/health` tells.

    The salts of tenants' caches hang on PREFILLSHARE_ROUTER_SECRET, or on a new secret: with the same one, a router
    that is started again finds what its tenants have in the workers' caches.

    Raises:
        UserError: a key is missing or cannot be read, `settings.placement` names a rule that does not exist or gives it
            what it does not take, or traces are asked for and OpenTelemetry is not installed.
    """
    fleet = Fleet(routes)
    fleet.listeners += listeners
    placement = Placement(fleet.routes, settings.placement, block_size=block_size)
    metrics = Metrics(fleet.pools, fleet.models)
    keys = load_keys(settings.keys, settings.keys_file, os.environ)
    keyring = make_keyring(keys, os.environ.get(SECRET_VARIABLE) or secrets.token_hex(32)) if keys else None
    tenants = TenantMetrics(metrics.registry, sorted({key.config.name for key in keys}))
    flow_metrics = FlowMetrics(metrics.registry, fleet.pools)
    extension_metrics = ExtensionMetrics(metrics.registry, fleet.models)
    divergence = Divergence(fleet.routes, metrics.registry, block_size)
    board = Board(fleet.routes, pools=fleet.pools, notices=divergence.notices)
    check_installed(settings.tracing, os.environ)
    created = int(time.time())
    draining = drain or Drain()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_http(settings, worker_key) as http:
            breaker = Breaker(settings.health.failures)
            breaker.opened.append(metrics.breaker_opened)
            monitor = HealthMonitor(http, fleet.routes, settings.health, breaker, metrics.probed)
            await monitor.check_all()
            watching = asyncio.create_task(monitor.run())
            capacities = Capacities(http, fleet.pools, settings.flow, max_num_seqs)
            flow = FlowControl(settings.flow, fleet.routes, placement, capacities, flow_metrics)
            flow_metrics.watch(flow.waiting)
            board.waiting = flow.waiting
            await capacities.ask()
            asking = asyncio.create_task(keep_asking(capacities, flow.freed))
            tracing = open_tracing(settings.tracing, os.environ)
            observer = Observer(metrics, board, tracing)
            relay = Relay(http, settings, placement, breaker, observer.leg)
            ledger = Ledger(block_size)
            fleet.listeners.append(partial(_forget_who_left, placement, ledger, breaker))
            app.state.admin = Admin(fleet, http, metrics, block_size)
            extension = Extension(http, settings.extension, fleet.routes, ledger, extension_metrics, block_size)
            app.state.services = Services(
                settings,
                relay,
                ledger,
                metrics,
                observer,
                fleet,
                max_body_bytes,
                tenants,
                draining,
                flow,
                extension,
                divergence,
            )
            with logging_as(settings.log_format):
                yield
            await extension.close()
            await asyncio.to_thread(tracing.close)
            for task in (watching, asking):
                task.cancel()
            await asyncio.gather(watching, asking, return_exceptions=True)

    def card(model: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": created, "owned_by": "prefillshare"}

    def callable_by(request: Request) -> tuple[str, ...]:
        return request.scope["user"].caller.may_call(fleet.models)

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card(model) for model in callable_by(request)]})

    async def get_model(request: Request) -> Response:
        model = request.path_params["model"]
        if model not in (known := callable_by(request)):
            raise model_not_found(model, sorted(known))
        return JSONResponse(card(model))

    async def health(request: Request) -> Response:
        """200 when every model can be served. Who is no operator learns nothing else."""
        routes = [fleet.routes[model] for model in fleet.models]
        ready = all(route.prefill.ready() and route.decode.ready() for route in routes) and not draining.begun
        status = "ok" if ready else "draining" if draining.begun else "unavailable"
        body: dict[str, object] = {"status": status}
        if not request.scope["user"].caller.operator:
            return JSONResponse(body, 200 if ready else 503)
        body |= {
            "pools": {pool.name: pool.report() for pool in fleet.pools},
            "models": {
                model: {"prefill": route.prefill.name, "decode": route.decode.name}
                for model, route in fleet.routes.items()
            },
        }
        return JSONResponse(body, 200 if ready else 503)

    async def prometheus(request: Request) -> Response:
        _check_operator(request)
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", CompletionEndpoint("chat/completions"), methods=["POST"]),
            Route("/v1/completions", CompletionEndpoint("completions"), methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{model:path}", get_model),
            Route("/health", health),
            Route("/metrics", prometheus),
            *admin_routes(settings),
            *status_routes(board, check=_check_operator),
        ],
        exception_handlers={
            RouterError: _router_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
        middleware=[Middleware(Gate, settings=settings, keyring=keyring, metrics=tenants)],
        lifespan=lifespan,
    )
    # A redirect would name the host that the client has sent, and have its body sent twice.
    app.router.redirect_slashes = False
    return app


def _forget_who_left(placement: Placement, ledger: Ledger, breaker: Breaker, change: Change, worker: Worker) -> None:
    if change == "left":
        breaker.succeeded(worker)
        placement.forget(worker)
        ledger.forget(worker.name)


def _check_operator(request: Request) -> None:
    """Raises RouterError (403) for a caller whose key is not an operator's. Where no key is needed everybody is one."""
    if not request.scope["user"].caller.operator:
        raise RouterError(403, f"{request.url.path} is for keys with `operator: true`.", code="not_an_operator")


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
