import pytest

from prefillshare.router.pool import Pool
from tests.router.fakes import prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")


@pytest.fixture
def pool() -> Pool:
    pool = Pool("prefill", [A, B])
    pool.mark_up(A)
    pool.mark_up(B)
    return pool


def test_a_worker_is_down_until_it_was_seen_up() -> None:
    pool = Pool("prefill", [A])
    assert pool.least_busy() is None
    assert pool.why_down() == "a: not checked yet"
    assert pool.mark_up(A)
    assert not pool.mark_up(A)
    assert pool.least_busy() == A


def test_the_least_busy_worker_is_chosen(pool: Pool) -> None:
    with pool.lease(A):
        assert pool.least_busy() == B
    with pool.lease(B), pool.lease(B), pool.lease(A):
        assert pool.least_busy() == A  # though it was chosen last


def test_equals_take_turns(pool: Pool) -> None:
    chosen = []
    for _ in range(4):
        worker = pool.least_busy()
        assert worker is not None
        with pool.lease(worker):
            chosen.append(worker.name)
    assert chosen == ["a", "b", "a", "b"]


def test_a_lease_ends_with_an_exception(pool: Pool) -> None:
    with pytest.raises(RuntimeError), pool.lease(A):
        raise RuntimeError
    assert pool.report()[0]["in_flight"] == 0


def test_workers_that_are_down_or_tried_are_not_chosen(pool: Pool) -> None:
    assert pool.least_busy(without=[A]) == B
    assert pool.mark_down(B, "gone")
    assert not pool.mark_down(B, "gone")
    assert pool.least_busy(without=[A]) is None
    assert pool.report() == [
        {"name": "a", "up": True, "in_flight": 0},
        {"name": "b", "up": False, "in_flight": 0, "reason": "gone"},
    ]
