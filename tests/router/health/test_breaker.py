import pytest

from prefillshare.router.errors import RouterError, bad_request, not_connected, worker_failed, worker_timed_out
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.pool import Pool, Worker
from tests.router.fakes import prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")
FAILED = worker_failed("a", "answered 500")


def test_failures_in_a_row_open_it_once(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    opened: list[Worker] = []
    breaker = Breaker(3)
    breaker.opened.append(opened.append)
    for error in (FAILED, worker_timed_out("a", 1.0)):
        breaker.failed(pool, A, error)
    assert pool.is_up(A)
    for _ in range(3):
        breaker.failed(pool, A, FAILED)
    assert pool.faults(A) == {"calls"}
    assert pool.reason(A) == "3 calls in a row failed"
    assert pool.is_up(B)
    assert opened == [A]
    assert len(caplog.messages) == 1


def test_a_success_in_between_starts_the_count_again(pool: Pool) -> None:
    breaker = Breaker(2)
    for _ in range(3):
        breaker.failed(pool, A, FAILED)
        breaker.succeeded(A)
    assert pool.is_up(A)


@pytest.mark.parametrize(
    "error", [bad_request("no"), not_connected("a", "refused"), RouterError(503, "", code="kv_lost")]
)
def test_what_is_not_the_workers_own_failure_is_not_counted(pool: Pool, error: RouterError) -> None:
    breaker = Breaker(1)
    breaker.failed(pool, A, error)
    assert pool.is_up(A)
