from collections.abc import Callable
from typing import Any

import pytest

from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute, pools_of
from tests.router.conftest import Cluster
from tests.router.fakes import BLOCK_SIZE, FakeWorker, decode_worker, prefill_worker, wait_for

PROMPT = "a prompt of several blocks, " * 3


def test_pools_that_models_share_are_listed_once() -> None:
    base, shared, own = Pool("prefill", []), Pool("decode/shared", []), Pool("decode/own", [])
    routes = [ModelRoute("base", base, pool) for pool in (shared, own, shared)]
    assert pools_of(routes) == [base, shared, own]


@pytest.mark.parametrize(
    ("names", "workers", "message"),
    [
        (("prefill/a", "prefill/a"), ("a-0", "b-0"), "pools are called prefill/a"),
        (("prefill/a", "prefill/b"), ("prefill-0", "prefill-0"), "workers are called prefill-0"),
    ],
)
def test_pools_and_workers_that_would_be_counted_together_are_refused(
    names: tuple[str, str], workers: tuple[str, str], message: str
) -> None:
    prefill = [Pool(name, [prefill_worker(worker)]) for name, worker in zip(names, workers, strict=True)]
    routes = [ModelRoute(str(n), pool, Pool(f"decode/{n}", [])) for n, pool in enumerate(prefill)]
    with pytest.raises(ValueError, match=message):
        pools_of(routes)


def test_a_worker_in_two_pools_is_refused_since_its_load_would_be_counted_twice() -> None:
    base, worker = Pool("prefill", []), decode_worker("shared-0")
    with pytest.raises(ValueError, match="shared-0"):
        pools_of([ModelRoute("base", base, Pool(f"decode/{model}", [worker])) for model in ("sql", "json")])


@pytest.fixture
def two_bases(start: Callable[..., Cluster]) -> Cluster:
    """`sql` and `json` of base `small`, with two prefill workers; `chat` of base `large`, with two of its own."""
    fakes = {f"prefill-small-{n}": FakeWorker("small") for n in range(2)}
    fakes |= {f"prefill-large-{n}": FakeWorker("large") for n in range(2)}
    fakes |= {f"{model}-0": FakeWorker(model) for model in ("sql", "json", "chat")}

    def routes(pool: Callable[[str], Pool]) -> dict[str, ModelRoute]:
        small, large = pool("prefill-small"), pool("prefill-large")
        return {
            "sql": ModelRoute("small", small, pool("sql")),
            "json": ModelRoute("small", small, pool("json")),
            "chat": ModelRoute("large", large, pool("chat")),
        }

    return start(fakes, routes)


def complete(cluster: Cluster, model: str, **headers: str) -> Any:
    return cluster.http.post("/v1/completions", json={"model": model, "prompt": PROMPT}, headers=headers)


def test_a_call_is_prefilled_by_the_base_of_its_model(two_bases: Cluster) -> None:
    for model in ("sql", "json", "chat"):
        for _ in range(3):
            answer = complete(two_bases, model)
            assert answer.json()["choices"][0]["text"] == f"{model} read {PROMPT}"
    asked = {
        base: {body["model"] for name, fake in two_bases.workers.items() if base in name for body in fake.bodies}
        for base in ("prefill-small", "prefill-large")
    }
    assert asked == {"prefill-small": {"small"}, "prefill-large": {"large"}}


def test_a_session_over_two_bases_finds_its_context_again_with_each(two_bases: Cluster) -> None:
    served = [
        (model, complete(two_bases, model, **{"x-session-id": "s"}).headers)
        for model in ("sql", "chat", "json", "chat", "sql")
    ]
    homes = {model: headers["x-prefillshare-prefill-worker"] for model, headers in served}
    assert homes["sql"] == homes["json"]
    assert [int(headers["x-prefillshare-reused-tokens"]) > 0 for _, headers in served] == [False, False, *[True] * 3]


def test_what_one_base_computed_is_never_said_to_be_reused_by_another(two_bases: Cluster) -> None:
    reused = len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE
    tokens = [
        tuple(
            int(answer.headers[f"x-prefillshare-{kind}-tokens"])
            for kind in ("computed", "reused", "reused-from-others")
        )
        for model in ("sql", "chat", "chat", "sql", "json")
        for answer in [complete(two_bases, model, **{"x-session-id": "s"})]
    ]
    rest = len(PROMPT) - reused
    own, from_sql = (rest, reused, 0), (rest, reused, reused)
    assert tokens == [(len(PROMPT), 0, 0), (len(PROMPT), 0, 0), own, own, from_sql]


def test_without_a_prefill_worker_of_its_base_a_model_is_unavailable_and_others_serve(two_bases: Cluster) -> None:
    for n in range(2):
        two_bases.workers[f"prefill-large-{n}"].healthy = False
    wait_for(lambda: two_bases.http.get("/health").status_code == 503)
    refused = complete(two_bases, "chat")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker_available")
    assert "prefill-large" in refused.json()["error"]["message"]
    assert complete(two_bases, "sql").status_code == 200
    health = two_bases.http.get("/health").json()
    assert health["models"]["chat"] == {"prefill": "prefill-large", "decode": "decode/chat"}
    assert [row["up"] for row in health["pools"]["prefill-large"]] == [False, False]


@pytest.fixture
def shared_workers(start: Callable[..., Cluster]) -> Cluster:
    """`sql` and `json` in the same two decode workers; `json` has its instructions behind the context."""
    fakes = {"prefill-0": FakeWorker("base")} | {f"adapters-{n}": FakeWorker("sql,json") for n in range(2)}

    def routes(pool: Callable[[str], Pool]) -> dict[str, ModelRoute]:
        base, adapters = pool("prefill"), pool("adapters")
        return {
            "sql": ModelRoute("base", base, adapters),
            "json": ModelRoute("base", base, adapters, "behind_context"),
        }

    return start(fakes, routes)


def test_the_worker_of_several_models_is_told_which_one_is_called(shared_workers: Cluster) -> None:
    for model in ("sql", "json", "sql", "json"):
        answer = complete(shared_workers, model).json()
        assert (answer["model"], answer["choices"][0]["text"]) == (model, f"{model} read {PROMPT}")
    for n in range(2):
        assert {body["model"] for body in shared_workers.workers[f"adapters-{n}"].bodies} <= {"sql", "json"}


def test_models_of_one_pool_keep_their_own_placement_of_instructions(shared_workers: Cluster) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    read = {
        model: shared_workers.http.post("/v1/chat/completions", json={"model": model, "messages": messages}).json()[
            "choices"
        ][0]["message"]["content"]
        for model in ("sql", "json")
    }
    assert read == {
        "sql": "sql read <system>Be brief.<user>hello",
        "json": "json read <user>hello\n\nBe brief.",
    }


def test_a_shared_workers_load_counts_for_every_model_it_hosts(shared_workers: Cluster) -> None:
    """A call to one model that hangs in a worker sends the calls to the other model to the second worker."""
    for n in range(2):
        shared_workers.workers[f"adapters-{n}"].behaviour = "stalls"
    with shared_workers.http.stream(
        "POST", "/v1/completions", json={"model": "sql", "prompt": PROMPT, "stream": True}
    ) as first:
        busy = first.headers["x-prefillshare-decode-worker"]
        shared_workers.workers["adapters-0"].behaviour = shared_workers.workers["adapters-1"].behaviour = "ok"
        answers = [
            shared_workers.http.post("/v1/completions", json={"model": "json", "prompt": f"another {n}"})
            for n in range(4)
        ]
        chosen = {answer.headers["x-prefillshare-decode-worker"] for answer in answers}
        pools = shared_workers.http.get("/health").json()["pools"]
    assert chosen == {"adapters-0", "adapters-1"} - {busy}
    assert set(pools) == {"prefill", "decode/adapters"}
    assert {row["name"]: row["in_flight"] for row in pools["decode/adapters"]}[busy] == 1


@pytest.mark.parametrize("model", ["base", "adapters-0~without-adapter", "", None])
def test_only_modules_can_be_addressed(shared_workers: Cluster, model: object) -> None:
    body = {"model": model, "prompt": PROMPT}
    assert shared_workers.http.post("/v1/completions", json=body).status_code in (400, 404)
    assert shared_workers.worker_bodies() == 0
