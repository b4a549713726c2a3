import pytest

from prefillshare.router.placement import Placement
from prefillshare.router.pool import Pool
from tests.router.fakes import decode_worker, prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")
SQL0, SQL1, JSON0 = decode_worker("sql-0"), decode_worker("sql-1"), decode_worker("json-0", model="json")
SESSION = ("x-session-id", "s")


@pytest.fixture
def placement() -> Placement:
    pools = Pool("prefill", [A, B]), Pool("decode/sql", [SQL0, SQL1]), Pool("decode/json", [JSON0])
    for pool in pools:
        for worker in pool.workers:
            pool.mark_up(worker)
    return Placement(pools[0], {"sql": pools[1], "json": pools[2]})


def test_a_session_stays_on_its_prefill_worker_however_busy(placement: Placement) -> None:
    home = placement.prefill_worker(SESSION)
    assert home is not None
    with placement.prefill.lease(home), placement.prefill.lease(home):
        assert placement.prefill_worker(SESSION) == home
        assert placement.prefill_worker(None) != home


def test_a_session_moves_for_good_when_its_worker_is_down(placement: Placement) -> None:
    home = placement.prefill_worker(SESSION)
    assert home is not None
    placement.prefill.mark_down(home, "gone")
    refuge = placement.prefill_worker(SESSION)
    assert refuge not in (home, None)
    placement.prefill.mark_up(home)
    assert placement.prefill_worker(SESSION) == refuge


def test_a_session_is_not_sent_back_to_a_worker_it_has_tried(placement: Placement) -> None:
    home = placement.prefill_worker(SESSION)
    assert home is not None
    assert placement.prefill_worker(SESSION, without=[home]) not in (home, None)
    assert placement.prefill_worker(SESSION, without=[A, B]) is None


def test_a_decode_worker_is_always_one_of_the_models_own(placement: Placement) -> None:
    placement.decode["sql"].mark_down(SQL0, "gone")
    assert placement.decode_worker("sql") == SQL1
    assert placement.decode_worker("sql", without=[SQL1]) is None
    assert placement.decode_worker("json") == JSON0
