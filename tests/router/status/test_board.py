import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefillshare.router.accounting import Attribution
from prefillshare.router.divergence import Notice
from prefillshare.router.pool import Pool
from prefillshare.router.record import CallRecord
from prefillshare.router.route import ModelRoute
from prefillshare.router.status import board as board_module
from prefillshare.router.status.board import BAR_S, WINDOW_S, Board
from tests.router.fakes import decode_worker, prefill_worker


@dataclass
class Desk:
    """A board with clocks that the test turns. That of the wall goes along, unless it is set."""

    now: float = 1_000_000.0
    set_by: float = 10**9
    pools: list[Pool] = field(default_factory=list)

    def __post_init__(self) -> None:
        prefill = Pool("prefill", [prefill_worker("prefill-0"), prefill_worker("prefill-1")])
        decode = {name: Pool(f"decode/{name}", [decode_worker(f"{name}-0")]) for name in ("sql", "json")}
        self.pools = [prefill, *decode.values()]
        routes = {name: ModelRoute("base", prefill, pool) for name, pool in decode.items()}
        self.notices: list[Notice] = []
        self.board = Board(
            routes, lambda: self.now, notices=lambda: self.notices, wall_clock=lambda: self.now + self.set_by
        )

    def call(self, **fields: Any) -> None:
        known = {"request_id": "id", "endpoint": "completions", "model": "sql", "status": 200, "reason": None}
        self.board.finished(CallRecord(**(known | {"seconds": 1.0} | fields)))

    def show(self) -> dict[str, Any]:
        self.now += 1
        return json.loads(json.dumps(self.board.snapshot()))


def test_workers_are_shown_with_their_load_and_since_when() -> None:
    desk = Desk()
    pool = desk.pools[0]
    pool.mark_up(pool.workers[0])
    pool.mark_down(pool.workers[1], "cannot connect")
    pool.drain(pool.workers[0])
    with pool.lease(pool.workers[0]):
        workers = desk.show()["workers"]
    assert [worker["name"] for worker in workers] == ["prefill-0", "prefill-1", "sql-0", "json-0"]
    up, down = workers[:2]
    assert (up["up"], up["in_flight"], up["role"], up["pool"], up["reason"]) == (True, 1, "prefill", "prefill", "")
    assert (down["up"], down["reason"]) == (False, "cannot connect")
    assert (up["draining"], down["draining"]) == (True, False)
    assert up["since"] == pool.since(pool.workers[0])


def test_the_queues_of_all_pools_are_shown_as_one() -> None:
    desk = Desk()
    assert desk.show()["queue"] == {"calls": 0, "tokens": 0}
    desk.board.waiting = lambda pool: {"decode/sql": (2, 300), "decode/json": (1, 50)}.get(pool.name, (0, 0))
    assert desk.show()["queue"] == {"calls": 3, "tokens": 350}


def test_the_matrix_says_who_had_paid_for_whom() -> None:
    desk = Desk()
    desk.call(model="json", tokens=Attribution(100, 20, 80, 64, {"sql": 64, "json": 16}))
    desk.call(model="json", tokens=Attribution(100, 20, 80, 32, {"sql": 32}))
    desk.call(model="sql", tokens=Attribution(50, 50, 0, 0))
    shown = desk.show()
    assert [model["name"] for model in shown["models"]] == ["sql", "json"]
    assert shown["reuse"] == [[0, 0], [96, 16]]
    assert (shown["window"]["prompt_tokens"], shown["window"]["reused_tokens"]) == (250, 160)
    assert shown["window"]["reused_from_others_tokens"] == 96
    assert shown["totals"] == {
        "calls": 3,
        "failed": 0,
        "prompt": 250,
        "reused": 160,
        "reused_from_others": 96,
        "output": 0,
    }


def test_percentiles_are_of_successful_calls_of_the_window() -> None:
    desk = Desk()
    desk.call(seconds=500.0)
    desk.now += WINDOW_S + 1
    for number in range(1, 101):
        desk.call(seconds=float(number), first_token_seconds=number / 10, output_tokens=11)
    desk.call(status=502, reason="worker_failed", seconds=900.0)
    window = desk.show()["window"]
    assert window["duration"] == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert window["first_token"] == {"p50": 5.0, "p95": 9.5, "p99": 9.9}
    assert window["per_token"]["p50"] == pytest.approx(4.5)
    assert (window["calls"], window["failed"]) == (101, 1)
    assert window["calls_per_second"] == pytest.approx(101 / WINDOW_S)


def test_a_router_that_has_just_started_shows_nothing_measured() -> None:
    window = Desk().show()["window"]
    assert window["duration"] == {"p50": None, "p95": None, "p99": None}
    assert window["calls_per_second"] == 0
    assert len(window["bars"]) == WINDOW_S / BAR_S


def test_the_bars_end_now_and_hold_calls_and_failures() -> None:
    desk = Desk()
    desk.call()
    desk.now += BAR_S
    desk.call()
    desk.call(status=503, reason="no_worker_available")
    bars = desk.show()["window"]["bars"]
    assert bars[-2:] == [[1, 0], [2, 1]]
    assert sum(calls for calls, _ in bars) == 3
    desk.now += 2 * BAR_S
    assert desk.show()["window"]["bars"][-4:] == [[1, 0], [2, 1], [0, 0], [0, 0]]
    desk.now += 10 * WINDOW_S
    assert sum(calls for calls, _ in desk.show()["window"]["bars"]) == 0


def test_sessions_are_counted_while_they_are_active() -> None:
    desk = Desk()
    for session in ("a", "b", "a"):
        desk.call(session=("user", session))
    desk.call()
    assert desk.show()["sessions"] == 2
    desk.now += WINDOW_S - 10
    desk.call(session=("user", "b"))
    desk.now += 20
    assert desk.show()["sessions"] == 1


def test_a_wall_clock_that_is_set_changes_no_figure() -> None:
    desk = Desk()
    desk.now += 100
    desk.call(session=("user", "a"))
    desk.set_by -= 10**6
    shown = desk.show()
    assert shown["window"]["calls_per_second"] == pytest.approx(1 / 101)
    assert (shown["sessions"], sum(calls for calls, _ in shown["window"]["bars"])) == (1, 1)
    assert shown["now"] == desk.now + desk.set_by
    assert shown["now"] - shown["started"] == 101


def test_notices_are_shown_as_they_are_now() -> None:
    desk = Desk()
    assert desk.show()["notices"] == []
    desk.notices = [Notice(("json", "sql"), "instructions", 640, "Train them.")]
    assert desk.show()["notices"] == [
        {"models": ["json", "sql"], "cause": "instructions", "tokens": 640, "cure": "Train them."}
    ]


def test_nothing_grows_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "MAX_CALLS", 50)
    monkeypatch.setattr(board_module, "MAX_SESSIONS", 20)
    desk = Desk()
    for number in range(1000):
        desk.now += BAR_S
        desk.call(session=("user", str(number)), tokens=Attribution(2, 1, 1, 1, {"json": 1}))
    board = desk.board
    assert (len(board._calls), len(board._sessions)) == (50, 20)
    assert len(board._bars) <= WINDOW_S / BAR_S + 1
    assert len(board._paid) == 1
    # More calls than are kept: the rate is over the time that they reach back.
    desk.call()
    assert desk.show()["window"]["calls_per_second"] == pytest.approx(50 / (49 * BAR_S), rel=0.1)


def test_however_many_look_the_board_is_read_once_a_second() -> None:
    desk = Desk()
    first = desk.board.snapshot()
    desk.call()
    assert desk.board.snapshot() is first
    assert desk.show()["totals"]["calls"] == 1


def test_nothing_that_a_client_has_sent_is_shown() -> None:
    desk = Desk()
    desk.call(model="unknown", status=404, reason="model_not_found", session=("user", "ann"))
    text = json.dumps(desk.show())
    assert "ann" not in text
    assert "model_not_found" not in text
