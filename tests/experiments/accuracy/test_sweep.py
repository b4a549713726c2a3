"""The sweep answers with the table's checkpoints, by `prefillshare evaluate`, and makes the page from its files."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.accuracy import sweep as sweep_module
from experiments.accuracy.items import Family
from experiments.accuracy.run import Grid, run
from experiments.accuracy.sweep import START, Sweep, write_sweeps
from experiments.section import END
from prefillshare.errors import UserError


@pytest.fixture
def sweep(grid: Grid, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "accuracy.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    monkeypatch.setattr(sweep_module, "SHARES", (0.0, 1.0))
    return Sweep(family.name, 0, grid.items, grid.base, grid.results, grid.checkpoints, docs)


def test_the_best_checkpoints_are_swept_and_trained_again_where_they_are_gone(sweep: Sweep, grid: Grid) -> None:
    trainings = record_trainings(grid)
    before = {file.name: file.read_bytes() for file in grid.results.iterdir()}
    shutil.rmtree(grid.checkpoints / trainings["decode"])
    text = sweep.run()
    assert (sweep.docs / "accuracy.md").read_text() == f"before\n{START}\n{text}\n{END}\nafter\n"
    lines = text.splitlines()
    assert lines[0].startswith("| toy, seed 0, 4 items, ")
    assert lines[0].endswith("share of base KV | naive sharing | decode module |")
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 0%", "| 100%"]
    assert "(accuracy-sweep-toy-s0.png)" in text
    assert (sweep.docs / "accuracy-sweep-toy-s0.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((sweep.docs / "results" / "accuracy-sweep" / "toy-s0.json").read_text())
    assert summary["settings"]["full_fine_tuning"] == trainings["full"]
    assert summary["settings"]["module"] == trainings["decode"]
    assert (grid.checkpoints / trainings["decode"] / "config.json").is_file()
    assert {file.name: file.read_bytes() for file in grid.results.iterdir()} == before
    assert write_sweeps(sweep.docs) == text


def test_a_checkpoint_of_another_dtype_is_not_trained_in_this_one(
    sweep: Sweep, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = record_trainings(grid)
    monkeypatch.setattr(sweep_module, "preferred_dtype", lambda: "float8")
    shutil.rmtree(grid.checkpoints / trainings["decode"])
    with pytest.raises(UserError, match="is gone and was trained in"):
        sweep.run()


def test_without_records_there_is_nothing_to_sweep(sweep: Sweep) -> None:
    with pytest.raises(UserError, match=r"no rate of toy, seed 0, has both systems; run .*--families toy --seeds 0"):
        sweep.run()


def record_trainings(grid: Grid) -> dict[str, str]:
    """Runs the grid at one rate; the folders of its checkpoints by system."""
    assert run(replace(grid, rates=(1e-3,)), budget_s=1e9, console=Console(file=io.StringIO()))
    return {system: f"toy-s0-{system}-0_001" for system in ("full", "decode")}
