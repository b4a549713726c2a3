"""What the command prints, writes and refuses."""

from pathlib import Path

import pytest

from experiments.calibration import __main__ as command
from experiments.calibration import publish
from experiments.calibration.runs import played
from experiments.section import END
from prefillshare.bench.figures import recorded
from prefillshare.errors import UserError
from tests.bench.written import CALL, SESSION, write_run
from tests.experiments.calibration.made import played_by_simulator, write_simulated
from tests.workloads.tokenisers import words


def test_a_system_whose_costs_are_not_known_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_tokenise", lambda base: words)
    monkeypatch.setattr("sys.argv", ["calibration", str(tmp_path)])
    write_run(tmp_path, [CALL, SESSION], system="colocated-lora")
    assert command.main() == 2
    assert "colocated-lora is not simulated" in capsys.readouterr().err
    facts, rows = recorded(tmp_path)[0]
    with pytest.raises(UserError, match="colocated-lora is not simulated"):
        played(facts, rows, words, tmp_path / "costs.json")
    write_run(tmp_path, [CALL, SESSION])
    run = played_by_simulator(tmp_path, "shared")
    monkeypatch.setattr(command, "played", lambda facts, *_: run)
    assert command.main() == 0
    told = capsys.readouterr()
    assert "left out, 1 runs: colocated-lora is not simulated" in told.err
    assert "| tool_heavy, 5 calls, 2 models, closed:2 | shared |" in told.out
    assert "colocated-lora" not in told.out


def test_a_folder_without_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_tokenise", lambda base: words)
    monkeypatch.setattr("sys.argv", ["calibration", str(tmp_path)])
    assert command.main() == 2
    assert "no run has ended here" in capsys.readouterr().err


def test_tables_go_beside_the_runs_and_a_row_into_the_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, slower in (("bench-one", 1.0), ("bench-two", 1.25)):
        results = page.parent / "results" / name
        results.mkdir()
        for system in ("shared", "per-model"):
            write_simulated(results, system, slower=slower)
        monkeypatch.setattr("sys.argv", ["calibration", str(results), "--publish"])
        assert command.main() == 0
        written = (results / publish.TABLES).read_text()
        assert f"python -m experiments.calibration docs/results/{name} --publish" in written
        assert "| tool_heavy, 5 calls, 2 models, closed:2 | per-model |" in written
        assert "tool_heavy, 5 calls" in (results / publish.PREDICTED).read_text()
    rows = [line for line in page.read_text().splitlines() if "](results/bench-" in line]
    what = "a processor, bfloat16 | costs as measured |"
    assert [row.partition(what)[0] for row in rows] == [
        f"| [{name}](results/{name}/calibration.md), " for name in ("bench-one", "bench-two")
    ]
    assert all("2 of 2; " in row and row.endswith("| - |") for row in rows)  # nothing of `colocated`
    assert "| 20.0% (-20% to -20%) | 25.0% (+25% to +25%) |" in rows[1]
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith(f"{END}\nafter\n")


def test_where_a_table_has_no_place_is_known_before_anything_is_simulated(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "played", lambda *_: pytest.fail("it was known that there is no place"))
    elsewhere, results = page.parent / "bench-one", page.parent / "results" / "bench-one"
    for folder in (elsewhere, results):
        folder.mkdir()
        write_run(folder, [CALL, SESSION])
    monkeypatch.setattr("sys.argv", ["calibration", str(elsewhere), "--publish"])
    assert command.main() == 2
    assert "is none of the folders in" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["calibration", str(results), "--publish", "--with", "kv=2"])
    assert command.main() == 2
    assert "docs/results/bench-one --with kv=2" in capsys.readouterr().err


def test_runs_to_fit_to_that_are_not_there_or_are_all_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, [CALL, SESSION])
    run = played_by_simulator(tmp_path, "shared")
    monkeypatch.setattr(command, "load_tokenise", lambda base: words)
    monkeypatch.setattr(command, "played", lambda *_: run)
    for kind, why in (("react/closed:2", "there are tool_heavy/closed:2"), (run.kind, "no run is left")):
        monkeypatch.setattr("sys.argv", ["calibration", str(tmp_path), "--fit", kind])
        assert command.main() == 2
        assert why in capsys.readouterr().err
