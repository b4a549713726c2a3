import pytest

from prefillshare.errors import UserError
from prefillshare.router.route import pools_of
from prefillshare.simulate.layout import Layout

MODELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("layout", "prefill", "decode", "pools"),
    [
        (Layout("shared", MODELS, 4, 2), 4, 6, 4),
        (Layout("shared", MODELS, 4, 2, decode_pools=2), 4, 4, 3),
        (Layout("per-model", MODELS, 4, 2), 12, 6, 6),
        (Layout("colocated", MODELS, 4, 2), 0, 6, 3),
        (Layout("per-model", MODELS, (1, 2, 3), (2, 1, 1)), 6, 4, 6),
        (Layout("shared", MODELS, (5,), (2, 3), decode_pools=2), 5, 5, 3),
        (Layout("per-model", MODELS, (1, 4), (2, 3), decode_pools=2), 5, 5, 4),
        (Layout("colocated", MODELS, 1, 2, decode_pools=1), 0, 2, 1),
    ],
)
def test_the_workers_of_a_system(layout: Layout, prefill: int, decode: int, pools: int) -> None:
    assert (sum(layout.prefill_numbers()), sum(layout.decode_numbers())) == (prefill, decode)
    assert sorted(sum(layout.decode_pool_models(), ())) == list(MODELS)
    routes = layout.routes()
    assert list(routes) == list(MODELS)
    found = pools_of(routes.values())
    assert len(found) == pools
    workers = [worker for pool in found for worker in pool.ready()]
    assert [worker.role for worker in workers].count("prefill") == prefill
    assert len(workers) == prefill + decode
    assert len(set(layout.device_of_workers(routes).values())) == prefill + decode


def test_models_of_a_pool_share_its_workers() -> None:
    routes = Layout("shared", MODELS, decode_pools=2).routes()
    assert routes["a"].decode is routes["c"].decode
    assert routes["a"].decode is not routes["b"].decode


def test_without_sharing_a_pool_also_prefills_together() -> None:
    layout = Layout("per-model", MODELS, decode_pools=2)
    routes = layout.routes()
    assert routes["a"].prefill is routes["c"].prefill
    assert [layout.prefill_pool_of(model) for model in MODELS] == [0, 1, 0]
    together = Layout("colocated", MODELS, decode_pools=1).routes()
    assert together["a"].prefill is together["b"].prefill is together["c"].decode


def test_workers_share_the_devices_of_their_role() -> None:
    layout = Layout("per-model", MODELS, prefill_devices=1, decode_devices=2)
    places = layout.device_of_workers(layout.routes())
    assert sorted(places.values()) == [("decode", 0), ("decode", 0), ("decode", 1), *[("prefill", 0)] * 3]


def test_a_device_can_be_of_both_kinds_of_workers() -> None:
    layout = Layout("shared", MODELS, prefill_devices=(0,), decode_devices=(1, 0))
    places = layout.device_of_workers(layout.routes())
    assert sorted(places.values()) == [("both", 0), ("both", 0), ("decode", 1), ("decode", 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "other"}, "system: there is no 'other'"),
        ({"models": ()}, "models"),
        ({"models": ("a", "a")}, "models"),
        ({"prefill_workers": 0}, "prefill_workers: at least 1, found 0"),
        ({"decode_devices": 0}, "decode_devices"),
        ({"decode_devices": ()}, "decode_devices: at least one number"),
        ({"decode_workers": (1, 0, 1)}, "decode_workers: at least 1"),
        ({"prefill_workers": (1, 1)}, "prefill_workers: a number for each of 1 pools, found 2"),
        ({"decode_pools": 4}, "decode_pools: at most a pool a model, found 4 of 3"),
        ({"decode_pools": 0}, "decode_pools: at least 1"),
    ],
)
def test_what_makes_no_deployment_is_refused_by_field(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Layout(**{"system": "shared", "models": MODELS} | arguments)
