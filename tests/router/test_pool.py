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
    assert pool.least_recent() == []
    assert pool.why_down() == "a: not checked yet"
    assert pool.mark_up(A)
    assert not pool.mark_up(A)
    assert pool.least_recent() == [A]


def test_the_load_is_that_of_the_calls_in_flight(pool: Pool) -> None:
    with pool.lease(A, 100), pool.lease(A, 20), pool.lease(B):
        assert (pool.load(A), pool.load(B)) == (120, 0)
    assert pool.load(A) == 0


def test_workers_come_in_the_order_of_their_last_calls(pool: Pool) -> None:
    with pool.lease(A):
        assert pool.least_recent() == [B, A]
    with pool.lease(B), pool.lease(A):
        pass
    assert pool.least_recent() == [B, A]


def test_a_lease_ends_with_an_exception(pool: Pool) -> None:
    with pytest.raises(RuntimeError), pool.lease(A, 100):
        raise RuntimeError
    assert pool.report()[0]["in_flight"] == pool.load(A) == 0


def test_workers_that_are_down_are_not_listed(pool: Pool) -> None:
    assert pool.mark_down(B, "gone")
    assert not pool.mark_down(B, "gone")
    assert pool.least_recent() == [A]
    assert pool.report() == [
        {"name": "a", "up": True, "in_flight": 0},
        {"name": "b", "up": False, "in_flight": 0, "reason": "gone"},
    ]


def test_each_time_a_worker_goes_down_is_a_loss(pool: Pool) -> None:
    assert pool.losses(A) == 0
    for losses in (1, 2):
        pool.mark_down(A, "gone")
        pool.mark_down(A, "still gone")
        pool.mark_up(A)
        assert (pool.losses(A), pool.losses(B)) == (losses, 0)
