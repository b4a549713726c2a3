"""A made-up system that serves so many sessions at a time, each in four calls of 5 s."""

import heapq
import statistics
from typing import Any

import pytest

from prefillshare.bench.open_loop import KEEPS_UP, arrivals_a_minute, kept_up
from prefillshare.workloads.arrivals import Poisson
from tests.bench.written import CALL, SESSION

CALLS, CALL_S, PLACES = 4, 5.0, 3
CAPACITY = PLACES / (CALLS * CALL_S)  # sessions a second

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def played(load: float, sessions: int, seed: int = 0, limit_s: float = float("inf")) -> Rows:
    """The rows of calls and sessions at `load` times the capacity."""
    calls, ended = [], []
    free = [0.0] * PLACES
    for number, at in enumerate(Poisson(load * CAPACITY, seed).times(sessions)):
        begin = max(at, heapq.heappop(free))
        heapq.heappush(free, begin + CALLS * CALL_S)
        times = [begin + turn * CALL_S for turn in range(CALLS)]
        made = [time for time in times if time + CALL_S <= limit_s]
        calls += [CALL | {"session": f"s-{number}", "at": time, "latency_s": CALL_S} for time in made]
        latency_s = min(begin + CALLS * CALL_S, limit_s) - at
        ended.append(SESSION | {"session": f"s-{number}", "at": at, "latency_s": latency_s, "calls": len(made)})
    return calls, ended


def middle(load: float, sessions: int) -> float:
    return statistics.median(kept_up(*played(load, sessions, seed)) or 0.0 for seed in range(9))


@pytest.mark.parametrize("sessions", [20, 60])
@pytest.mark.parametrize("load", [0.2, 0.6])
def test_a_system_that_keeps_up_is_at_about_1_although_sessions_are_under_way(load: float, sessions: int) -> None:
    assert middle(load, sessions) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("sessions", [20, 60])
@pytest.mark.parametrize("load", [1.5, 2.0, 4.0])
def test_an_overloaded_one_is_at_what_it_can_do_of_what_arrives(load: float, sessions: int) -> None:
    assert middle(load, sessions) == pytest.approx(1 / load, abs=0.1)
    assert middle(load, sessions) < KEEPS_UP


def test_it_does_not_matter_whether_the_run_went_on_until_all_had_ended() -> None:
    calls, sessions = played(2.0, 40)
    last = max(session["at"] for session in sessions)
    cut_calls, cut_sessions = played(2.0, 40, limit_s=last)
    assert len(cut_calls) < len(calls)
    assert kept_up(cut_calls, cut_sessions) == pytest.approx(kept_up(calls, sessions))


def test_sessions_that_failed_were_not_kept_up_with() -> None:
    calls, sessions = played(0.5, 40)
    late = {session["session"] for session in sessions[20:]}
    failed = [call | ({"error": "HTTP 429"} if call["session"] in late else {}) for call in calls]
    found = kept_up(failed, sessions)
    assert found is not None
    assert found < 0.7


def test_arrivals_are_counted_as_they_were_drawn() -> None:
    assert arrivals_a_minute([SESSION | {"at": at} for at in (0.0, 3.0, 7.0, 30.0)]) == 6
    assert arrivals_a_minute([SESSION]) is None


def test_of_a_few_sessions_nothing_is_said() -> None:
    assert kept_up(*played(0.5, 9)) is None
    assert kept_up([], []) is None
    assert kept_up(*played(0.5, 10)) is not None
