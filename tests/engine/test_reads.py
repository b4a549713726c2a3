import time
from types import SimpleNamespace

import pytest

from prefillshare.engine.reads import Reads

AHEAD = {"prefill": 100.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize(("seconds_left", "used"), [(5.0, True), (2.6, True), (2.4, False), (-1.0, False)])
def test_kv_is_used_if_it_came_well_before_its_lease_ended(
    clock: SimpleNamespace, seconds_left: float, used: bool
) -> None:
    reads = Reads(8.0)
    reads.begin("call", "prefill", lease_end=1100.0 + seconds_left)
    refusal = reads.end("call", AHEAD)
    assert (refusal is None) == used
    assert refusal is None or refusal.reason == "lease_expired"


def test_a_lease_by_a_clock_that_nobody_knows_is_over(clock: SimpleNamespace) -> None:
    reads = Reads(8.0)
    reads.begin("call", "prefill", lease_end=9999.0)
    refusal = reads.end("call", {})
    assert refusal is not None
    assert "the clock that its lease goes by" in refusal.message


def test_what_does_not_come_is_given_up_once_and_then_ends_unheard(clock: SimpleNamespace) -> None:
    reads = Reads(8.0)
    reads.begin("stuck", "prefill", lease_end=9999.0)
    clock.now += 7.9
    reads.begin("young", "prefill", lease_end=9999.0)
    assert list(reads.overdue()) == []
    clock.now += 0.2
    ((request_id, refusal),) = reads.overdue()
    assert (request_id, refusal.reason) == ("stuck", "pull_failed")
    assert list(reads.overdue()) == []
    clock.now += 10_000.0
    assert reads.end("stuck", AHEAD) is None  # told already


def test_the_end_of_another_request_says_nothing(clock: SimpleNamespace) -> None:
    assert Reads(8.0).end("refused", AHEAD) is None
