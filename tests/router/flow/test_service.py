import pytest

from prefillshare.router.flow.service import ServiceTimes
from prefillshare.router.pool import Pool
from tests.router.fakes import decode_worker


def test_the_wait_is_what_those_in_flight_take_by_their_share() -> None:
    pool, times = Pool("sql", [decode_worker("a")]), ServiceTimes()
    assert times.expect(pool, 200, 400) == 0.0  # nothing is known yet
    times.took(pool, 8.0)
    assert times.expect(pool, 200, 400) == pytest.approx(4.0)
    assert times.expect(pool, 200, 0) == 0.0  # nothing is in flight


def test_the_last_calls_count_most() -> None:
    pool, times = Pool("sql", []), ServiceTimes()
    assert times.typical_s(pool) is None
    for seconds in [1.0] * 50 + [3.0] * 10:
        times.took(pool, seconds)
    assert times.typical_s(pool) == pytest.approx(2.3, abs=0.2)
