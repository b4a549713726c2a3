import pytest

from prefillshare.router.placement import Placement
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute, pools_of
from tests.router.fakes import decode_worker, prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")
C, D = prefill_worker("c"), prefill_worker("d")  # of another base
SQL0, SQL1, JSON0, OTHER0 = (decode_worker(name) for name in ("sql-0", "sql-1", "json-0", "other-0"))
SESSION = ("x-session-id", "s")


@pytest.fixture
def placement() -> Placement:
    base, other = Pool("prefill/base", [A, B]), Pool("prefill/other", [C, D])
    routes = {
        "sql": ModelRoute("base", base, Pool("decode/sql", [SQL0, SQL1])),
        "json": ModelRoute("base", base, Pool("decode/json", [JSON0])),
        "other": ModelRoute("other", other, Pool("decode/other", [OTHER0])),
    }
    for pool in pools_of(routes.values()):
        for worker in pool.workers:
            pool.mark_up(worker)
    return Placement(routes)


def test_a_session_stays_on_its_prefill_worker_however_busy(placement: Placement) -> None:
    home = placement.prefill_worker("sql", SESSION)
    assert home is not None
    pool = placement.routes["sql"].prefill
    with pool.lease(home), pool.lease(home):
        assert placement.prefill_worker("sql", SESSION) == placement.prefill_worker("json", SESSION) == home
        assert placement.prefill_worker("sql", None) != home


def test_a_session_moves_for_good_when_its_worker_is_down(placement: Placement) -> None:
    home = placement.prefill_worker("sql", SESSION)
    assert home is not None
    pool = placement.routes["sql"].prefill
    pool.mark_down(home, "gone")
    refuge = placement.prefill_worker("sql", SESSION)
    assert refuge not in (home, None)
    pool.mark_up(home)
    assert placement.prefill_worker("sql", SESSION) == refuge


def test_a_session_is_not_sent_back_to_a_worker_it_has_tried(placement: Placement) -> None:
    home = placement.prefill_worker("sql", SESSION)
    assert home is not None
    assert placement.prefill_worker("sql", SESSION, without=[home]) not in (home, None)
    assert placement.prefill_worker("sql", SESSION, without=[A, B]) is None


def test_a_decode_worker_is_always_one_of_the_models_own(placement: Placement) -> None:
    placement.routes["sql"].decode.mark_down(SQL0, "gone")
    assert placement.decode_worker("sql") == SQL1
    assert placement.decode_worker("sql", without=[SQL1]) is None
    assert placement.decode_worker("json") == JSON0


def test_a_session_has_one_home_with_each_base(placement: Placement) -> None:
    homes = {model: placement.prefill_worker(model, SESSION) for model in ("sql", "other", "json")}
    assert homes["sql"] == homes["json"]
    assert homes["sql"] in (A, B)
    assert homes["other"] in (C, D)
    for model, home in homes.items():
        assert home is not None
        pool = placement.routes[model].prefill
        with pool.lease(home), pool.lease(home):
            assert placement.prefill_worker(model, SESSION) == home


def test_a_model_whose_base_is_down_gets_no_worker_of_another(placement: Placement) -> None:
    for worker in (C, D):
        placement.routes["other"].prefill.mark_down(worker, "gone")
    assert placement.prefill_worker("other", SESSION) is None
    assert placement.prefill_worker("other", None) is None
