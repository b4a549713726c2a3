"""The admin API's paths. Each change, made or refused, is one line in the log."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.router.admin.access import check_admin
from prefillshare.router.admin.bodies import NewModule, NewWorker, read_json, read_query
from prefillshare.router.admin.joining import Joining
from prefillshare.router.admin.modules import ModuleChanges
from prefillshare.router.admin.workers import WorkerChanges
from prefillshare.router.disconnect import unless_disconnected
from prefillshare.router.errors import RouterError
from prefillshare.router.exchange import CLIENT_LEFT
from prefillshare.router.fleet import Fleet
from prefillshare.router.flow.metrics import KV
from prefillshare.router.metrics import Metrics
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import RouterConfig

LOG = logging.getLogger("prefillshare.router")
PATH = "/admin/v1"

Row = dict[str, Any]
Result = TypeVar("Result")


class Admin:
    """What the paths act on; they find it as `app.state.admin` once the app has started."""

    def __init__(self, fleet: Fleet, http: aiohttp.ClientSession, metrics: Metrics, block_size: int, kv: KV) -> None:
        joining, adding = Joining(http, fleet, block_size), asyncio.Lock()
        self.fleet = fleet
        self._kv = kv
        self.workers = WorkerChanges(fleet, joining, adding)
        self.modules = ModuleChanges(fleet, joining, metrics, adding)

    def worker_row(self, pool: Pool, worker: Worker) -> Row:
        up, draining = pool.is_up(worker), pool.is_draining(worker)
        kv, kv_limit = self._kv(worker)
        return {
            "name": worker.name,
            "role": worker.role,
            "pool": pool.name,
            "url": worker.url,
            "state": "down" if not up else "draining" if draining else "up",
            "up": up,
            "draining": draining,
            "reason": pool.reason(worker),
            "since": pool.since(worker),
            "in_flight": pool.in_flight(worker),
            "handoffs": self.fleet.handoffs(worker),
            "idle": self.fleet.is_idle(pool, worker),
            "load": pool.load(worker),
            "limit": pool.limit(worker),
            "kv": kv,
            "kv_limit": kv_limit,
        }

    def pool_row(self, pool: Pool) -> Row:
        base = self.fleet.base_of(pool)
        return {
            "name": pool.name,
            "role": "prefill" if pool is base.prefill else "decode",
            "base": base.name,
            "models": [base.name] if pool is base.prefill else list(self.fleet.modules_of(pool)),
            "workers": [worker.name for worker in pool.workers],
            "ready": len(pool.ready()),
        }

    def module_row(self, name: str) -> Row:
        route: ModelRoute = self.fleet.routes[name]
        return {
            "name": name,
            "base": route.base,
            "prefill": route.prefill.name,
            "pool": route.decode.name,
            "instructions": route.instructions,
            "calls": self.fleet.calls(name),
            "served": name in self.fleet.models,
        }


def admin_routes(settings: RouterConfig) -> list[Route]:
    """Everything under `/admin/v1`, for those whom `check_admin` lets in."""

    def route(path: str, method: str, answer: Callable[[Admin, Request], Awaitable[tuple[int, Row]]]) -> Route:
        async def endpoint(request: Request) -> Response:
            change = f"{method} {path}" if method != "GET" else ""
            try:
                check_admin(request, settings)
                status, body = await answer(request.app.state.admin, request)
            except RouterError as error:
                _log(request, change, f"refused status={error.status} reason={error.code}")
                raise
            _log(request, change, f"status={status}")
            return JSONResponse(body, status, {"cache-control": "no-store"})

        return Route(PATH + path, endpoint, methods=[method])

    return [
        route("/workers", "GET", _list_workers),
        route("/workers", "POST", _add_worker),
        route("/workers/{name}", "GET", _get_worker),
        route("/workers/{name}", "DELETE", _remove_worker),
        route("/workers/{name}/drain", "POST", _drain_worker),
        route("/workers/{name}/resume", "POST", _resume_worker),
        route("/pools", "GET", _list_pools),
        route("/modules", "GET", _list_modules),
        route("/modules", "POST", _add_module),
        route("/modules/{name:path}", "DELETE", _remove_module),
    ]


def _log(request: Request, change: str, outcome: str) -> None:
    if change:
        tenant = request.scope["user"].caller.name or "-"
        name = request.path_params.get("name", "-")
        LOG.info("admin tenant=%s change=%r name=%r %s", tenant, change, name[:128], outcome)


async def _unless_left(request: Request, change: Coroutine[None, None, Result]) -> Result:
    """What the change gives. A client that leaves, by Ctrl-C of `--wait` say, ends it as a wait that is over does.

    Raises:
        RouterError: 499, it left; nobody is there to be told, but the log.
    """
    made: list[Result] = []

    async def make() -> None:
        made.append(await change)

    if not await unless_disconnected(request.receive, make()):
        raise RouterError(CLIENT_LEFT, "The client left before the wait was over.", code="client_left")
    return made[0]


async def _list_workers(admin: Admin, request: Request) -> tuple[int, Row]:
    return 200, {"workers": [admin.worker_row(*found) for found in admin.fleet.workers()]}


async def _get_worker(admin: Admin, request: Request) -> tuple[int, Row]:
    return 200, admin.worker_row(*admin.workers.find(request.path_params["name"]))


async def _add_worker(admin: Admin, request: Request) -> tuple[int, Row]:
    added = await admin.workers.add(await read_json(request, NewWorker))
    LOG.info("worker=%s added pool=%s url=%s", added[1].name, added[0].name, added[1].url)
    return 201, admin.worker_row(*added)


async def _drain_worker(admin: Admin, request: Request) -> tuple[int, Row]:
    """202 while calls are still under way on the worker, 200 when it can be stopped."""
    change = admin.workers.drain(request.path_params["name"], read_query(request))
    row = admin.worker_row(*await _unless_left(request, change))
    return 200 if row["idle"] else 202, row


async def _resume_worker(admin: Admin, request: Request) -> tuple[int, Row]:
    return 200, admin.worker_row(*admin.workers.resume(request.path_params["name"]))


async def _remove_worker(admin: Admin, request: Request) -> tuple[int, Row]:
    name = request.path_params["name"]
    await _unless_left(request, admin.workers.remove(name, read_query(request)))
    return 200, {"removed": name}


async def _list_pools(admin: Admin, request: Request) -> tuple[int, Row]:
    return 200, {"pools": [admin.pool_row(pool) for pool in admin.fleet.pools]}


async def _list_modules(admin: Admin, request: Request) -> tuple[int, Row]:
    return 200, {"modules": [admin.module_row(name) for name in admin.fleet.routes]}


async def _add_module(admin: Admin, request: Request) -> tuple[int, Row]:
    new = await read_json(request, NewModule)
    await admin.modules.add(new)
    LOG.info("module=%s added base=%s pool=%s", new.name, new.base, new.pool_name)
    return 201, admin.module_row(new.name)


async def _remove_module(admin: Admin, request: Request) -> tuple[int, Row]:
    name = request.path_params["name"]
    workers = await _unless_left(request, admin.modules.remove(name, read_query(request)))
    return 200, {"removed": name, "workers": [worker.name for worker in workers]}
