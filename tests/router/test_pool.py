import pytest

from prefillshare.router import pool as pool_module
from prefillshare.router.pool import Pool
from tests.router.clocks import Clock
from tests.router.fakes import prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")


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
        {"name": "b", "up": False, "in_flight": 0, "reason": "gone", "faults": ["health"]},
    ]


def test_a_worker_is_up_when_every_fault_was_taken_back(pool: Pool) -> None:
    assert pool.mark_down(A, "does not answer")
    assert not pool.mark_down(A, "5 calls failed", "calls")
    assert pool.faults(A) == {"health", "calls"}
    assert not pool.mark_up(A)
    assert (pool.is_up(A), pool.reason(A)) == (False, "5 calls failed")
    assert pool.mark_up(A, "calls")
    assert pool.is_up(A)
    assert not pool.mark_up(A, "token")


def test_calls_in_flight_are_cut_when_nobody_should_wait_any_longer(pool: Pool) -> None:
    cut: list[str] = []
    with pool.waiting(A, lambda: cut.append("first")), pool.waiting(B, lambda: cut.append("other")):
        assert pool.cut(A) == 1
    assert pool.cut(A) == 0
    assert cut == ["first"]


def test_a_call_that_comes_is_no_sign_of_life(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, pool_module)
    pool.heard(A)
    clock.now += 5
    with pool.lease(A), pool.waiting(A, lambda: None) as call:
        pool.wait_for(A, call)
        assert pool.silence_s(A) == pytest.approx(5)
        pool.heard(A)
        assert pool.silence_s(A) == 0


def test_a_worker_keeps_calls_waiting_from_the_first_of_them_on_and_since_its_last_sign_of_life(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, pool_module)
    clock.now += 50
    with pool.waiting(A, lambda: None) as call:
        assert pool.is_awaited(A)
        clock.now += 3
        with pool.waiting(A, lambda: None):
            assert pool.keeps_waiting_s(A) == pytest.approx(3)
        pool.heard(A)
        assert pool.keeps_waiting_s(A) == 0
        call.for_worker = False
        assert not pool.is_awaited(A)
        clock.now += 10
        pool.wait_for(A, call)
        assert (pool.is_awaited(A), pool.keeps_waiting_s(A)) == (True, 0)
        clock.now += 4
    clock.now += 1
    with pool.waiting(A, lambda: None):  # somebody tries again
        assert pool.keeps_waiting_s(A) == pytest.approx(5)
    clock.now += 20
    with pool.waiting(A, lambda: None):
        assert pool.keeps_waiting_s(A) == 0


def test_nobody_goes_on_with_the_wait_of_a_call_that_was_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, pool_module)
    clock.now += 50
    before = pool.waiting(A, lambda: None)
    call = before.__enter__()
    for _ in range(30):  # the next one comes before the last one has its refusal
        clock.now += 1
        after = pool.waiting(A, lambda: None)
        following = after.__enter__()
        clock.now += 1
        call.refused = True
        before.__exit__(None, None, None)
        before, call = after, following
        assert pool.keeps_waiting_s(A) == 1
    before.__exit__(None, None, None)
    assert pool.keeps_waiting_s(A) == 0


def test_what_is_said_of_a_worker_that_was_removed_is_ignored(pool: Pool) -> None:
    pool.remove(A)
    pool.heard(A)
    assert not pool.mark_down(A, "gone")
    assert pool.reason(A) == "removed"


def test_each_time_a_worker_goes_down_is_a_loss(pool: Pool) -> None:
    assert pool.losses(A) == 0
    for losses in (1, 2):
        pool.mark_down(A, "gone")
        pool.mark_down(A, "still gone")
        pool.mark_up(A)
        assert (pool.losses(A), pool.losses(B)) == (losses, 0)


def test_a_worker_that_drains_gets_no_calls_and_is_up(pool: Pool) -> None:
    with pool.lease(A, 10):
        pool.drain(A)
        assert (pool.ready(), pool.least_recent(), pool.up()) == ([B], [B], [A, B])
        assert pool.is_draining(A)
        assert pool.load(A) == 10
    assert pool.report()[0] == {"name": "a", "up": True, "in_flight": 0, "draining": True}
    assert pool.why_down() == "a: draining"
    pool.resume(A)
    assert pool.ready() == [A, B]
    assert pool.why_down() == ""


def test_a_worker_that_is_to_leave_drains_whoever_else_drains_or_resumes_it(pool: Pool) -> None:
    with pool.leaving(A):
        with pool.leaving(A):
            pool.resume(A)
            assert (pool.is_draining(A), pool.ready()) == (True, [B])
            assert pool.report()[0] == {"name": "a", "up": True, "in_flight": 0, "draining": True}
            assert pool.why_down() == "a: draining"
        assert pool.is_draining(A)
        pool.drain(A)
    assert pool.is_draining(A)
    pool.resume(A)
    assert pool.ready() == [A, B]


def test_workers_join_and_leave(pool: Pool) -> None:
    joined = prefill_worker("c")
    pool.add(joined)
    assert pool.workers == (A, B, joined)
    assert joined not in pool.ready()
    with pytest.raises(ValueError, match="worker c already"):
        pool.add(joined)
    with pool.lease(A, 10):
        pool.remove(A)
        assert pool.workers == (B, joined)
        pool.add(A)
    assert pool.load(A) == 0  # the call was counted with the worker that left


def test_room_is_what_the_limit_leaves(pool: Pool) -> None:
    assert pool.has_room(A, 10**9)
    pool.set_limit(A, 100)
    assert pool.limit(A) == 100
    assert pool.limit(B) is None
    assert pool.has_room(A, 101)  # alone
    with pool.lease(A, 60):
        assert pool.has_room(A, 40)
        assert not pool.has_room(A, 41)


def test_who_has_left_may_still_be_asked_about(pool: Pool) -> None:
    with pool.lease(A, 10):
        pool.remove(A)
        assert not pool.mark_down(A, "lost the connection")
        assert (pool.is_up(A), pool.load(A), pool.reason(A)) == (False, 0, "removed")
    assert pool.workers == (B,)
    assert [row["name"] for row in pool.report()] == ["b"]


def test_what_is_reserved_takes_room_like_a_call_in_flight(pool: Pool) -> None:
    pool.set_limit(A, 100, calls=2)
    release = pool.reserve(A, 60)
    assert pool.load(A) == 60
    assert pool.has_room(A, 40)
    assert not pool.has_room(A, 41)
    with pool.lease(A, 10):
        assert not pool.has_room(A, 1)  # two calls
    release()
    assert pool.load(A) == 0
    assert pool.has_room(A, 101)


def test_one_call_at_a_time_finds_room_on_an_idle_worker(pool: Pool) -> None:
    pool.set_limit(A, None, calls=1)
    assert pool.has_room(A, 5)
    with pool.lease(A, 5):
        assert not pool.has_room(A, 5)
