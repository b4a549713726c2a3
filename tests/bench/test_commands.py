import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefillshare import cli
from prefillshare.workloads import tokens
from tests.workloads.tokenisers import words


@pytest.fixture(autouse=True)
def _small_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "load_tokenise", lambda base: words)


def test_drawn_sessions_become_a_file_and_the_file_a_trace(tmp_path: Path) -> None:
    sessions, trace = tmp_path / "sessions.jsonl", tmp_path / "trace.jsonl"
    run = CliRunner().invoke
    drawn = run(cli.app, ["bench", "workload", "react", str(sessions), "--base", "b", "--sessions", "3"])
    assert drawn.output.startswith("3 sessions with ")
    calls = int(drawn.output.split()[3])
    written = run(
        cli.app,
        ["bench", "workload", str(sessions), str(trace), "--base", "b", "--format", "mooncake", "--session-ids"],
    )
    assert written.exit_code == 0, written.output
    rows = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(rows) == calls
    assert {row["session_id"] for row in rows} == {f"react-0-{number}" for number in range(3)}


def test_help_names_the_sources() -> None:
    shown = CliRunner().invoke(cli.app, ["bench", "workload", "--help"], terminal_width=200).output
    assert "tool_heavy" in shown
    assert "bfcl:base" in shown
