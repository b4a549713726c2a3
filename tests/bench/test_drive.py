from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from prefillshare.bench.client import open_client
from prefillshare.bench.drive import CallRecord, CutRecord, Play, Record, SessionRecord, as_row, play
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson, Trace
from prefillshare.workloads.session import Session, Turn, Workload
from tests.bench.fake_server import FakeServer

MODELS = ("m0", "m1")


def session(name: str, think_s: float = 0.0) -> Session:
    return Session(
        name,
        (
            Turn("planner", f"Question: {name}", 3, "look", 2, 0.0, "You plan."),
            Turn("actor", "", 0, "act", 4, think_s, "You act."),
        ),
    )


async def played(fake: FakeServer, sessions: Sequence[Session], arrivals: Arrivals, **fields: Any) -> list[Record]:
    records: list[Record] = []
    async with TestServer(fake.app()) as server, open_client("key") as http:
        url = str(server.make_url("")).rstrip("/")
        workload = Workload("w", "Examples.", 1, tuple(sessions))
        what = Play(workload, arrivals, MODELS, dict.fromkeys(MODELS, url), **fields)
        await play(http, what, records.append)
    return records


def split(records: list[Record]) -> tuple[list[CallRecord], list[SessionRecord]]:
    return (
        [record for record in records if isinstance(record, CallRecord)],
        [record for record in records if isinstance(record, SessionRecord)],
    )


async def test_every_role_calls_its_model_over_the_growing_context() -> None:
    fake = FakeServer()
    calls, (whole,) = split(await played(fake, [session("a")], Closed(1)))
    assert [(call.role, call.model, call.output_tokens) for call in calls] == [("planner", "m0", 2), ("actor", "m1", 4)]
    assert [body["model"] for body in fake.bodies] == ["m0", "m1"]
    assert [len(body["messages"]) for body in fake.bodies] == [1, 3]
    assert fake.bodies[1]["messages"][1]["content"] == "look"  # what was recorded, not what the server said
    assert whole.finished
    assert (whole.calls, whole.planned_calls) == (2, 2)
    assert whole.busy_s == pytest.approx(sum(call.latency_s for call in calls))


async def test_live_answers_join_the_context() -> None:
    fake = FakeServer()
    calls, _ = split(await played(fake, [session("a")], Closed(1), mode="live"))
    assert fake.bodies[1]["messages"][1]["content"] == "w0 w1 w2 w3 "
    assert [call.output_tokens for call in calls] == [4, 8]
    recorded, _ = split(await played(fake, [session("a")], Closed(1)))
    longer = [live.new_tokens - replayed.new_tokens for live, replayed in zip(calls, recorded, strict=True)]
    assert longer == [0, 2]  # the answer that joined has four tokens in place of two


async def test_a_live_trial_that_begins_again_has_nothing_of_the_last_answer() -> None:
    first = session("a").turns[0]
    again = Session("a", (first, replace(first, observed="Question: b", restarts=True)))
    calls, _ = split(await played(FakeServer(), [again], Closed(1), mode="live"))
    recorded, _ = split(await played(FakeServer(), [again], Closed(1)))
    assert [call.new_tokens for call in calls] == [call.new_tokens for call in recorded]


async def test_a_closed_loop_keeps_as_many_sessions_under_way_as_it_says() -> None:
    fake = FakeServer(delay_s=0.02)
    _, sessions = split(await played(fake, [session(name) for name in "abcdef"], Closed(2)))
    assert fake.most_at_once == 2
    assert len(sessions) == 6
    assert sessions[-1].at > 0.05  # it was due when a place was free


async def test_an_open_loop_waits_for_nobody() -> None:
    fake = FakeServer(delay_s=0.3)
    arrivals = Poisson(20.0)
    calls, sessions = split(await played(fake, [session(name) for name in "abcde"], arrivals))
    assert fake.most_at_once == 5
    due = {each.session: each.at for each in sessions}
    assert sorted(due.values()) == list(arrivals.times(5))
    assert all(call.at >= due[call.session] for call in calls)


async def test_think_time_passes_before_a_call_and_counts_for_the_session_alone() -> None:
    calls, (whole,) = split(await played(FakeServer(), [session("a", think_s=0.2)], Closed(1)))
    assert calls[1].at - calls[0].at >= 0.2
    assert whole.latency_s >= 0.2
    assert whole.busy_s < 0.2


async def test_a_failed_call_ends_its_session_and_no_other() -> None:
    fake = FakeServer("refuses")
    calls, sessions = split(await played(fake, [session("a"), session("b")], Closed(1)))
    assert [call.error and call.error[:8] for call in calls] == ["HTTP 429"] * 2
    assert [(each.calls, each.finished) for each in sessions] == [(0, False)] * 2
    assert sessions[0].error == calls[0].error


async def test_the_limit_cuts_sessions_off_and_tells_of_them() -> None:
    fake = FakeServer(delay_s=0.15)
    records = await played(fake, [session("a"), session("b")], Closed(1), limit_s=0.25)
    calls, sessions = split(records)
    assert len(calls) == 1
    (cut,) = (record for record in records if isinstance(record, CutRecord))
    assert (cut.session, cut.turn, cut.role, cut.model, cut.expected_output_tokens) == ("a", 1, "actor", "m1", 4)
    assert (cut.ttft_s, cut.output_tokens) == (None, 0)
    assert cut.at + cut.seen_s == pytest.approx(0.25, abs=0.05)
    assert as_row(cut)["kind"] == "cut"
    (whole,) = sessions
    assert (whole.session, whole.calls, whole.planned_calls, whole.finished) == ("a", 1, 2, False)
    assert whole.error is None


async def test_salted_prompts_share_nothing_with_those_of_another_run() -> None:
    fake = FakeServer()
    await played(fake, [session("a")], Closed(1), salt="run 7")
    assert fake.bodies[0]["messages"][0]["content"].startswith("run 7 Examples.")


async def test_rows_say_what_they_are() -> None:
    rows = [as_row(record) for record in await played(FakeServer(), [session("a")], Closed(1))]
    assert [row["kind"] for row in rows] == ["call", "call", "session"]
    assert rows[0]["expected_output_tokens"] == 2


async def test_a_session_that_is_cut_off_between_its_calls_has_none_under_way() -> None:
    records = await played(FakeServer(), [session("a", think_s=60.0)], Closed(1), limit_s=0.2)
    assert [as_row(record)["kind"] for record in records] == ["call", "session"]


async def test_recorded_sessions_come_when_they_were_recorded_to() -> None:
    fake = FakeServer(delay_s=0.3)
    arrivals = Trace(2.0, (0.0, 0.1, 0.4))
    calls, sessions = split(await played(fake, [session(name) for name in "abc"], arrivals))
    due = {each.session: each.at for each in sessions}
    assert due == {"a": 0.0, "b": 0.05, "c": 0.2}
    assert all(call.at >= due[call.session] for call in calls)
    assert fake.most_at_once == 3


async def test_a_role_that_is_not_called_keeps_the_others_models() -> None:
    records: list[Record] = []
    fake = FakeServer()
    async with TestServer(fake.app()) as server, open_client("key") as http:
        url = str(server.make_url("")).rstrip("/")
        workload = Workload("w", "", 0, (session("a"),), declared=("critic", "planner", "actor"))
        names = ("m0", "m1", "m2")
        await play(http, Play(workload, Closed(1), names, dict.fromkeys(names, url)), records.append)
    assert [call.model for call in split(records)[0]] == ["m1", "m2"]
