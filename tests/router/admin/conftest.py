"""A router with an operator's key, and workers that join it."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import ASGIApp

from prefillshare.access import digest
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute
from tests.router.conftest import Cluster
from tests.router.fakes import FakeWorker, Served, announcement

OPS, ANN, JOE = ("ps-" + letter * 43 for letter in "oaj")
KEYS = [
    {"name": "ops", "sha256": digest(OPS).hex(), "models": [], "operator": True},
    {"name": "ann", "sha256": digest(ANN).hex()},
    {"name": "joe", "sha256": digest(JOE).hex(), "models": ["json"]},
]


class Site:
    """A running router and the fake workers behind it. `admin` speaks as an operator, `ann` and `joe` as tenants."""

    def __init__(self, cluster: Cluster, serve: Callable[..., Served]) -> None:
        self.cluster = cluster
        self._serve = serve
        self.threads = ThreadPoolExecutor(8)

    def admin(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {OPS}"} | options.pop("headers", {})
        return self.cluster.http.request(method, f"/admin/v1{path}", headers=headers, **options)

    @contextmanager
    def asking(self, method: str, path: str) -> Iterator[None]:
        """An operator's request under way; when the block ends the operator leaves, as by Ctrl-C."""
        at = urlsplit(self.cluster.url)
        with socket.create_connection((at.hostname, at.port)) as client:
            head = f"{method} /admin/v1{path} HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {OPS}\r\n\r\n"
            client.sendall(head.encode())
            yield

    def get(self, path: str, key: str = OPS) -> httpx.Response:
        return self.cluster.http.get(path, headers={"authorization": f"Bearer {key}"})

    def ask(self, model: str = "sql", key: str = ANN, endpoint: str = "completions", **fields: Any) -> httpx.Response:
        body = {"model": model, **({} if "messages" in fields else {"prompt": "hi"}), **fields}
        return self.cluster.http.post(f"/v1/{endpoint}", json=body, headers={"authorization": f"Bearer {key}"})

    def ask_meanwhile(self, model: str = "sql", **fields: Any) -> "Future[httpx.Response]":
        return self.threads.submit(self.ask, model, **fields)

    def start(self, name: str, announces: dict[str, Any] | None, model: str = "") -> dict[str, str]:
        """A new worker; returns its name and address, as the API takes them."""
        serves = model or ",".join(served["name"] for served in (announces or {}).get("models", []))
        fake = self.cluster.workers[name] = FakeWorker(serves, announces=announces)
        self.cluster.servers[name] = self._serve(fake.app())
        return {"name": name, "url": self.cluster.servers[name].url}

    def serve_at(self, url: str, name: str) -> None:
        """The fake of that name once more, at an address that it had before."""
        app = self.cluster.workers[name].app()
        self.cluster.servers[name] = self._serve(app, port=int(url.rpartition(":")[2]))

    def worker(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = self.admin("GET", f"/workers/{name}").json()
        return row

    def models(self, key: str = ANN) -> list[str]:
        return [model["id"] for model in self.get("/v1/models", key).json()["data"]]


@pytest.fixture
def start_site(start: Callable[..., Cluster], serve: Callable[[ASGIApp], Served]) -> Iterator[Callable[..., Site]]:
    """Two prefill workers; `sql` has two decode workers of its own; `json` and `xml` are adapters in one worker.

    That worker also hosts `csv`, which is not served.
    """
    sites: list[Site] = []

    def start_site(**options: Any) -> Site:
        fakes = {f"prefill-{n}": FakeWorker("base", announces=announcement("prefill", "base")) for n in range(2)}
        fakes |= {f"sql-{n}": FakeWorker("sql", announces=announcement("decode", "sql")) for n in range(2)}
        hosted = ("json", "xml", "csv")
        fakes["adapters-0"] = FakeWorker(",".join(hosted), announces=announcement("decode", *hosted))

        def routes(pool: Callable[[str], Pool]) -> dict[str, ModelRoute]:
            base, adapters = pool("prefill"), pool("adapters")
            return {
                name: ModelRoute("base", base, decode, identity="sha256:base")
                for name, decode in (("sql", pool("sql")), ("json", adapters), ("xml", adapters))
            }

        sites.append(Site(start(fakes, routes, **({"router": {"keys": KEYS}} | options)), serve))
        return sites[-1]

    yield start_site
    for site in sites:
        site.threads.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def site(start_site: Callable[..., Site]) -> Site:
    return start_site()
