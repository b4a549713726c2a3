import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefillshare import cli
from prefillshare.bench.matrix import FULL, SHORT, Matrix, load_matrix
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


def test_a_trace_keeps_its_times_unless_others_are_asked_for(tmp_path: Path) -> None:
    source, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    rows = (
        {"timestamp": at, "input_length": 600, "output_length": 5, "hash_ids": [2 * at, 2 * at + 1]}
        for at in (0, 70_000, 90_000)
    )
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def times(*options: str) -> list[int]:
        to = ["bench", "workload", f"mooncake:{source}", str(again), "--base", "b", "--format", "mooncake", *options]
        assert CliRunner().invoke(cli.app, to).exit_code == 0
        return [json.loads(line)["timestamp"] for line in again.read_text().splitlines()]

    assert times() == [0, 70_000, 90_000]
    assert times("--rate", "1000")[-1] < 1000


def test_costs_are_of_the_matrix_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Matrix] = []
    monkeypatch.setattr("prefillshare.bench.calibrate.calibrate", lambda matrix, *rest: measured.append(matrix) or 0)
    given = ["bench", "calibrate", str(tmp_path), "--base", "b"]
    assert CliRunner().invoke(cli.app, given).exit_code == 0
    (tmp_path / "matrix.json").write_text(SHORT.model_dump_json())
    assert CliRunner().invoke(cli.app, given).exit_code == 0
    other = tmp_path / "other.yaml"
    other.write_text("workloads: [{source: react}]")
    assert CliRunner().invoke(cli.app, [*given, "--matrix", str(other)]).exit_code == 0
    assert measured == [FULL, SHORT, load_matrix(other)]


def test_help_names_the_sources() -> None:
    shown = CliRunner().invoke(cli.app, ["bench", "workload", "--help"], terminal_width=200).output
    assert "tool_heavy" in shown
    assert "bfcl:base" in shown
