"""A whole router with fake workers, on loopback."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from prefillshare.router.app import create_app
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import RouterConfig
from tests.router.fakes import FACTS, FakeWorker, Served, decode_worker, prefill_worker


@dataclass
class Cluster:
    url: str
    workers: dict[str, FakeWorker]  # by name
    http: httpx.Client  # talks to the router
    servers: dict[str, Served]  # workers by name

    @property
    def prefill(self) -> list[FakeWorker]:
        return [fake for name, fake in self.workers.items() if name.startswith("prefill")]

    @property
    def decode(self) -> dict[str, list[FakeWorker]]:
        """The decode workers by what their names start with."""
        pools: dict[str, list[FakeWorker]] = {}
        for name, fake in self.workers.items():
            if not name.startswith("prefill"):
                pools.setdefault(name.rpartition("-")[0], []).append(fake)
        return pools

    def worker_bodies(self) -> int:
        """How many requests all workers together have received."""
        return sum(len(worker.bodies) for worker in self.workers.values())


@pytest.fixture
def pool() -> Pool:
    """Two prefill workers, `a` and `b`, that are up."""
    pool = Pool("prefill", [prefill_worker("a"), prefill_worker("b")])
    for worker in pool.workers:
        pool.mark_up(worker)
    return pool


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], Served]]:
    running: list[Served] = []

    def start(app: ASGIApp, port: int = 0) -> Served:
        running.append(Served(app, port))
        return running[-1]

    yield start
    for server in running:
        server.begin_to_stop()
    for server in running:
        server.stop()


@pytest.fixture
def start(serve: Callable[[ASGIApp], Served]) -> Iterator[Callable[..., Cluster]]:
    """Starts fake workers by name, and a router with the routes that `routes` makes of their pools.

    A pool's workers are those whose names start with its name and "-". `router` has more fields of its configuration,
    `facts` other values than FACTS.
    """
    clients: list[httpx.Client] = []

    def start(
        fakes: dict[str, FakeWorker],
        routes: Callable[[Callable[[str], Pool]], dict[str, ModelRoute]],
        *,
        timeout_s: float = 10.0,
        router: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Cluster:
        servers = {name: serve(fake.app()) for name, fake in fakes.items()}

        def pool(name: str) -> Pool:
            make = prefill_worker if name.startswith("prefill") else decode_worker
            members = [worker for worker in fakes if worker.rpartition("-")[0] == name]
            title = name if name.startswith("prefill") else f"decode/{name}"
            return Pool(title, [make(worker, servers[worker].url) for worker in members])

        settings = RouterConfig(request_timeout_s=timeout_s, connect_timeout_s=1.0, **(router or {}))
        url = serve(create_app(settings, routes(pool), replace(FACTS, **(facts or {})), **options)).url
        # It would read the machine's certificates, which takes longer than most of these tests.
        clients.append(httpx.Client(base_url=url, timeout=20, verify=False))
        return Cluster(url, fakes, clients[-1], servers)

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def start_cluster(start: Callable[..., Cluster]) -> Callable[..., Cluster]:
    """Starts `prefill` base workers and, for each module, the given number of decode workers.

    `behind_context` names the modules whose manifests have instructions there, `calls_tools` those with a parser.
    """

    def start_cluster(
        prefill: int = 1,
        sql: int = 1,
        json: int = 1,
        behind_context: Collection[str] = (),
        calls_tools: Collection[str] = (),
        **options: Any,
    ) -> Cluster:
        fakes = {f"prefill-{n}": FakeWorker("base") for n in range(prefill)}
        fakes |= {f"sql-{n}": FakeWorker("sql") for n in range(sql)}
        fakes |= {f"json-{n}": FakeWorker("json") for n in range(json)}

        def routes(pool: Callable[[str], Pool]) -> dict[str, ModelRoute]:
            base = pool("prefill")
            return {
                model: ModelRoute(
                    "base",
                    base,
                    pool(model),
                    "behind_context" if model in behind_context else "in_place",
                    "hermes" if model in calls_tools else None,
                )
                for model in ("sql", "json")
            }

        return start(fakes, routes, **options)

    return start_cluster


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    return start_cluster()
