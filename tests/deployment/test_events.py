import json
import logging
from pathlib import Path

import pytest

from prefillshare.deployment.events import Event, EventLog


def test_an_event_is_a_json_line_and_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path)
    with caplog.at_level(logging.INFO):
        log(Event("died", "decode-sql-0", "died: SIGKILL", {"reason": "SIGKILL"}))
        log(Event("serving", "", "serving on x", {"url": "x"}))
    first, second = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert first.pop("time").endswith("+00:00")
    assert first == {"event": "died", "worker": "decode-sql-0", "reason": "SIGKILL"}
    assert "worker" not in second
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "decode-sql-0: died: SIGKILL"),
        ("INFO", "serving on x"),
    ]
    log.close()


def test_a_full_disk_costs_lines_of_the_file_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path)
    log(Event("died", "decode-sql-0", "died: SIGKILL", {"reason": "SIGKILL"}))
    log.close()
    messages = [record.getMessage() for record in caplog.records]
    assert "decode-sql-0: died: SIGKILL" in messages
    assert sum("No space left on device" in message and "events.jsonl" in message for message in messages) == 2


def test_a_new_run_appends(tmp_path: Path) -> None:
    for url in ("x", "y"):
        log = EventLog(tmp_path)
        log(Event("serving", "", "", {"url": url}))
        log.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2
