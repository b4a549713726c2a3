"""A whole router with fake workers, on loopback."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import httpx
import pytest
from starlette.types import ASGIApp

from prefillshare.config import RouterConfig
from prefillshare.router.app import create_app
from tests.router.fakes import BLOCK_SIZE, FakeWorker, Served, decode_worker, prefill_worker


@dataclass
class Cluster:
    url: str
    prefill: list[FakeWorker]
    decode: dict[str, list[FakeWorker]]
    http: httpx.Client  # talks to the router
    servers: dict[str, Served]  # workers by name

    def worker_bodies(self) -> int:
        """How many requests all workers together have received."""
        workers = [*self.prefill, *(worker for pool in self.decode.values() for worker in pool)]
        return sum(len(worker.bodies) for worker in workers)


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], Served]]:
    running: list[Served] = []

    def start(app: ASGIApp) -> Served:
        running.append(Served(app))
        return running[-1]

    yield start
    for server in running:
        server.begin_to_stop()
    for server in running:
        server.stop()


@pytest.fixture
def start_cluster(serve: Callable[[ASGIApp], Served]) -> Iterator[Callable[..., Cluster]]:
    """Starts `prefill` base workers and, for each module, the given number of decode workers.

    `behind_context` names the modules whose manifests have instructions there.
    """
    clients: list[httpx.Client] = []

    def start(
        prefill: int = 1,
        sql: int = 1,
        json: int = 1,
        timeout_s: float = 10.0,
        behind_context: Collection[str] = (),
        **options: int,
    ) -> Cluster:
        fakes = {f"prefill-{n}": FakeWorker("base") for n in range(prefill)}
        fakes |= {f"sql-{n}": FakeWorker("sql") for n in range(sql)}
        fakes |= {f"json-{n}": FakeWorker("json") for n in range(json)}
        servers = {name: serve(fake.app()) for name, fake in fakes.items()}
        app = create_app(
            RouterConfig(request_timeout_s=timeout_s, connect_timeout_s=1.0),
            [prefill_worker(name, servers[name].url) for name in fakes if name.startswith("prefill")],
            {
                model: [
                    decode_worker(
                        name, servers[name].url, model, "behind_context" if model in behind_context else "in_place"
                    )
                    for name in fakes
                    if name.startswith(model)
                ]
                for model in ("sql", "json")
            },
            block_size=BLOCK_SIZE,
            **options,
        )
        url = serve(app).url
        clients.append(httpx.Client(base_url=url, timeout=20))
        return Cluster(
            url,
            [fake for name, fake in fakes.items() if name.startswith("prefill")],
            {model: [fake for name, fake in fakes.items() if name.startswith(model)] for model in ("sql", "json")},
            clients[-1],
            servers,
        )

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    return start_cluster()
