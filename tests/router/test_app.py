from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.errors import UserError
from prefillshare.router.accounting import Ledger
from prefillshare.router.app import create_app
from prefillshare.router.assembly import _forget_who_left
from prefillshare.router.errors import worker_failed
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import PlacementConfig, RouterConfig
from tests.router.conftest import Cluster
from tests.router.fakes import FACTS, FakeWorker, Served, prefill_worker, wait_for


def test_models_are_the_decode_modules(cluster: Cluster) -> None:
    listed = cluster.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["sql", "json"]
    assert cluster.http.get("/v1/models/sql").json() == listed["data"][0]
    missing = cluster.http.get("/v1/models/base")
    assert missing.status_code == 404
    assert "json, sql" in missing.json()["error"]["message"]


class Telling(FakeWorker):
    """Says how long a call may be."""

    def app(self) -> Starlette:
        async def models(request: Request) -> Response:
            return JSONResponse({"data": [{"id": self.model, "max_model_len": 4096}]})

        app = super().app()
        app.routes.append(Route("/v1/models", models))
        return app


def test_models_have_what_vllms_have(start: Callable[..., Cluster]) -> None:
    """`vllm bench serve` reads `root`, LiteLLM `max_model_len`."""

    def routes(pool: Callable[[str], Pool]) -> dict[str, ModelRoute]:
        base = pool("prefill")
        return {model: ModelRoute("base", base, pool(model)) for model in ("sql", "json")}

    cluster = start({"prefill-0": Telling("base"), "sql-0": Telling("sql"), "json-0": FakeWorker("json")}, routes)
    known, unknown = cluster.http.get("/v1/models").json()["data"]
    assert (known["root"], known["parent"], known["max_model_len"]) == ("sql", None, 4096)
    assert (unknown["root"], unknown["parent"], unknown["max_model_len"]) == ("json", None, None)
    assert cluster.http.get("/v1/models/sql").json() == known


def test_health_lists_the_workers_of_each_pool(cluster: Cluster) -> None:
    response = cluster.http.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "pools": {
            "prefill": [{"name": "prefill-0", "up": True, "in_flight": 0}],
            "decode/sql": [{"name": "sql-0", "up": True, "in_flight": 0}],
            "decode/json": [{"name": "json-0", "up": True, "in_flight": 0}],
        },
        "models": {
            "sql": {"prefill": "prefill", "decode": "decode/sql"},
            "json": {"prefill": "prefill", "decode": "decode/json"},
        },
    }


async def test_startup_knows_the_workers_that_are_up(serve: Callable[[ASGIApp], Served]) -> None:
    workers = [prefill_worker("prefill-0", serve(FakeWorker("base").app()).url), prefill_worker("prefill-1")]
    route = ModelRoute("base", Pool("prefill", workers), Pool("decode/sql", []))
    app = create_app(RouterConfig(), {"sql": route}, FACTS)
    async with app.router.lifespan_context(app):
        assert b'prefillshare_workers_healthy{pool="prefill"} 1.0' in app.state.services.metrics.render()


def test_the_rules_of_placement_are_those_of_the_settings() -> None:
    placement = PlacementConfig.model_validate({"prefill": ["nearest"]})
    with pytest.raises(UserError, match=r"router\.placement\.prefill\.0: there is no rule 'nearest'"):
        create_app(RouterConfig(placement=placement), {}, FACTS)


def test_a_pool_without_a_worker_makes_only_its_model_unavailable(cluster: Cluster) -> None:
    cluster.decode["sql"][0].healthy = False
    wait_for(lambda: cluster.http.get("/health").status_code == 503)
    health = cluster.http.get("/health").json()
    assert health["status"] == "unavailable"
    assert health["pools"]["decode/sql"][0]["reason"] == "its health check answered 503"
    refused = cluster.http.post("/v1/completions", json={"model": "sql", "prompt": "hi"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "no_worker_available"
    assert cluster.http.post("/v1/completions", json={"model": "json", "prompt": "hi"}).status_code == 200
    assert 'prefillshare_workers_healthy{pool="decode/sql"} 0.0' in cluster.http.get("/metrics").text


def test_a_worker_that_comes_back_serves_again(cluster: Cluster) -> None:
    cluster.prefill[0].healthy = False
    wait_for(lambda: cluster.http.get("/health").status_code == 503)
    cluster.prefill[0].healthy = True
    wait_for(lambda: cluster.http.get("/health").status_code == 200)
    assert cluster.http.post("/v1/completions", json={"model": "sql", "prompt": "hi"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/responses", 404),
    ],
)
def test_other_paths_and_methods_answer_in_openais_shape(cluster: Cluster, method: str, path: str, status: int) -> None:
    response = cluster.http.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert path in error["message"]
    assert "POST /v1/chat/completions" in error["message"]


def test_nothing_that_was_known_of_a_worker_outlives_it() -> None:
    """Its calls that failed in a row, and its size, are not those of a worker of its name that joins later."""
    worker = prefill_worker("prefill-0")
    pool, breaker = Pool("prefill", [worker]), Breaker(2)
    opened: list[Worker] = []
    breaker.opened.append(opened.append)
    forgotten: list[Worker] = []
    capacities: Any = SimpleNamespace(forget=forgotten.append)
    forget = partial(_forget_who_left, Placement({}), Ledger(), breaker, capacities)
    for _ in range(2):
        breaker.failed(pool, worker, worker_failed("prefill-0", "answered 500"))
        forget("left", worker)
    assert opened == []
    assert forgotten == [worker, worker]
    for _ in range(2):
        breaker.failed(pool, worker, worker_failed("prefill-0", "answered 500"))
        forget("joined", worker)
    assert opened == [worker]
