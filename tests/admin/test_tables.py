import io
from typing import Any

from rich.console import Console
from rich.table import Table

from prefillshare.admin.tables import duration, modules_table, under_way, workers_table

WORKER: dict[str, Any] = {
    "name": "sql-0",
    "pool": "decode/sql",
    "state": "up",
    "reason": "",
    "since": 1000.0,
    "in_flight": 3,
    "handoffs": 0,
    "load": 500,
    "limit": None,
    "kv": 400,
    "kv_limit": None,
    "url": "http://127.0.0.1:8100",
}


def text(table: Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_worker_is_one_row() -> None:
    down = WORKER | {"state": "down", "reason": "[bold]cannot connect", "limit": 900, "kv_limit": 4000}
    shown = text(workers_table([down], now=1090.0))
    for part in (
        "sql-0",
        "decode/sql",
        "down ([bold]cannot connect)",
        "1 min",
        "500 / 900",
        "400 / 4000",
        "http://127.0.0.1:8100",
    ):
        assert part in shown


def cells(table: Table, width: int) -> list[str]:
    """What stands in each column, headings and all, its lines put together."""
    rows = [line.replace("┃", "│").split("│")[1:-1] for line in text(table, width).splitlines()]
    return ["".join(cell.strip() for cell in column) for column in zip(*filter(None, rows), strict=True)]


def test_nothing_is_cut_off_in_a_narrow_terminal() -> None:
    worker = WORKER | {"name": "decode-sql-of-a-long-name-0", "pool": "decode/sql-of-a-long-name"}
    shown = cells(workers_table([worker]), 80)
    assert [shown[0], shown[1], shown[-1]] == [
        "workerdecode-sql-of-a-long-name-0",
        "pooldecode/sql-of-a-long-name",
        "addresshttp://127.0.0.1:8100",
    ]
    module = {"name": "sql-of-a-long-name", "base": "a-base-of-a-long-name", "pool": worker["pool"], "calls": 2}
    shown = cells(modules_table([module | {"instructions": "behind_context", "served": True}], []), 80)
    assert shown[:3] == ["modulesql-of-a-long-name", "basea-base-of-a-long-name", "pooldecode/sql-of-a-long-name"]
    assert shown[-1] == "instructionsbehind_context"


def test_a_state_of_a_later_router_is_shown_as_it_is() -> None:
    assert "resting" in text(workers_table([WORKER | {"state": "resting"}]))


def test_a_module_is_shown_with_the_workers_that_can_serve_it() -> None:
    module = {"name": "sql", "base": "base", "pool": "decode/sql", "calls": 2, "instructions": "in_place"}
    pool = {"name": "decode/sql", "ready": 1, "workers": ["sql-0", "sql-1"]}
    shown = text(modules_table([module | {"served": False}], [pool]))
    assert "1 of 2" in shown
    assert "sql (leaving)" in shown


def test_what_is_waited_for_is_said() -> None:
    assert under_way(WORKER) == "sql-0: 3 call(s) under way"
    assert under_way(WORKER | {"handoffs": 2}).endswith("KV of 2 to be fetched")


def test_durations_are_short() -> None:
    assert [duration(seconds) for seconds in (-1, 59, 60, 3600, 90_000)] == ["0 s", "59 s", "1 min", "1 h", "1 d"]
