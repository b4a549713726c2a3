import os
import re
from pathlib import Path

import pytest

from prefillshare.deployment.log_dir import check_log_dir, log_dir_or_error
from prefillshare.errors import UserError


def problems(log_dir: Path) -> list[str]:
    findings = list(check_log_dir(log_dir))
    assert {(finding.subject, finding.verdict) for finding in findings} <= {("log_dir", "problem")}
    return [finding.detail for finding in findings]


def test_a_folder_that_is_there_or_can_be_made_is_good_and_nothing_is_written(tmp_path: Path) -> None:
    for log_dir in (tmp_path, tmp_path / "run" / "logs"):
        assert problems(log_dir) == []
    assert not list(tmp_path.iterdir())
    (tmp_path / "events.jsonl").touch()
    assert problems(tmp_path) == []


def test_a_file_in_its_place_or_above_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "logs"
    file.touch()
    for log_dir in (file, file / "run"):
        assert problems(log_dir) == [f"{file} is not a folder; choose another log_dir"]


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert problems(tmp_path / "run" / "logs") == [f"{tmp_path} may not be written; choose another log_dir"]


def test_a_file_of_events_that_is_somebody_elses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "events.jsonl"
    events.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path != events)
    assert problems(tmp_path) == [f"{events} may not be written; remove it, or choose another log_dir"]


def test_what_fails_all_the_same_is_a_users_error(tmp_path: Path) -> None:
    file = tmp_path / "logs"
    file.touch()
    message = f"log_dir: {file} cannot be written: File exists; choose another log_dir"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"), log_dir_or_error(file):
        file.mkdir()


def test_a_link_that_leads_nowhere_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "logs").symlink_to(tmp_path / "not mounted")
    (problem,) = problems(tmp_path / "logs")
    assert "logs is not a folder" in problem
