"""Whether a system keeps up with sessions that arrive on their own."""

from collections.abc import Mapping, Sequence
from typing import Any

KEEPS_UP = 0.95  # a system of which `kept_up` says no less does
FEWEST = 10  # sessions, to say anything


def kept_up(calls: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """How fast sessions' work was done, to how fast it arrived: about 1 if the system kept up, less if it did not.

    What has arrived and is not done, every session counted by the share of its calls that are still to come, is a
    backlog. A system that keeps up has one too, of the sessions that are under way, but it does not go on growing; that
    of an overloaded one grows evenly, by what arrives too much. So the time until the last arrival is halved: between
    the means of the backlog in the two halves lies what it grows by in half of the time. Means, since the backlog of
    any one moment is chance; and nothing after the last arrival, when the run only comes to its end. A session that a
    failed call has ended stays in the backlog.

    In the simulator, `per-model` with tool-heavy sessions is at 0.98 or more up to 85 % of its capacity, and at 0.90,
    0.85 and 0.64 with 1.15, 1.3 and 2 times that (60 sessions, medians of twelve draws); of a single run with 20
    sessions it can be a quarter off.

    Returns:
        None if there were too few sessions to tell.
    """
    last = max((session["at"] for session in sessions), default=0.0)
    if len(sessions) < FEWEST or not last:
        return None
    planned = {session["session"]: session["planned_calls"] for session in sessions}
    done = [
        (call["at"] + call["latency_s"], 1 / planned[call["session"]])
        for call in calls
        if call["error"] is None and call["session"] in planned
    ]

    def backlog(begin: float, end: float) -> float:
        arrived = sum(_within(session["at"], begin, end) for session in sessions)
        return (arrived - sum(share * _within(at, begin, end) for at, share in done)) / (end - begin)

    growth = 2 * (backlog(last / 2, last) - backlog(0.0, last / 2))
    return 1 - growth / len(sessions)


def arrivals_a_minute(sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """As they were drawn: of 60 sessions some 13 % more or fewer than the load says, the same for all systems."""
    last = max((session["at"] for session in sessions), default=0.0)
    return 60 * (len(sessions) - 1) / last if last else None


def _within(since: float, begin: float, end: float) -> float:
    """How much of the time between `begin` and `end` lies behind `since`."""
    return max(0.0, end - max(since, begin))
