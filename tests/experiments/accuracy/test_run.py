"""The grid: what it does, in which order, and that it goes on where it stopped."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.accuracy import run as run_module
from experiments.accuracy.cells import Cell, Record, best, load, read, save
from experiments.accuracy.cells import grid as cells_of
from experiments.accuracy.families import FAMILIES
from experiments.accuracy.items import Family, Item
from experiments.accuracy.run import Clock, Grid, Step, run
from prefillshare.errors import UserError


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings and scorings are pretended; this is what was done. The higher rate is the better one."""
    done: list[str] = []

    def train(
        cell: Cell, items: list[Item], base: Path, folder: Path, start_from: Path | None = None
    ) -> dict[str, Any]:
        if start_from:
            done.append(f"start from {start_from.name}")
            assert (start_from / "config.json").is_file()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        done.append(f"train {cell}")
        return {"seconds": 1.0, "final_loss": 0.5}

    def score(label: str, family: Family, items: list[Item], prefill: Path, decode: Path, file: Path) -> dict[str, Any]:
        done.append(label)
        for folder in {prefill, decode}:
            assert (folder / "config.json").is_file()
        right = ("1" if "0.01" in label else "0") * len(items)
        return {"right": right, "seconds": 1.0}

    monkeypatch.setattr(run_module, "train_cell", train)
    monkeypatch.setattr(run_module, "score", score)
    return done


def go(what: Grid, budget_s: float = 1e9) -> tuple[bool, str]:
    text = io.StringIO()
    return run(what, budget_s=budget_s, console=Console(file=text, width=200)), text.getvalue()


def test_all_rates_are_tuned_and_the_best_alone_is_tested(grid: Grid, trained: list[str]) -> None:
    assert go(grid)[0]
    assert trained == [
        "toy seed 0 base: base, test items",
        "train toy seed 0 full 0.001",
        "toy seed 0 full 0.001: full, validation items",
        "toy seed 0 full 0.001: naive, validation items",
        "train toy seed 0 full 0.01",
        "toy seed 0 full 0.01: full, validation items",
        "toy seed 0 full 0.01: naive, validation items",
        "toy seed 0 full 0.01: full, test items",
        "toy seed 0 full 0.01: naive, test items",
        "train toy seed 0 decode 0.001",
        "toy seed 0 decode 0.001: decode, validation items",
        "train toy seed 0 decode 0.01",
        "toy seed 0 decode 0.01: decode, validation items",
        "toy seed 0 decode 0.01: decode, test items",
    ]
    kept = sorted(folder.name for folder in grid.checkpoints.iterdir() if (folder / "config.json").is_file())
    assert kept == ["toy-s0-decode-0_01", "toy-s0-full-0_01"]


def test_whose_weights_prefill_and_whose_answer(
    grid: Grid, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {}

    def score(label: str, family: Family, items: list[Item], prefill: Path, decode: Path, file: Path) -> dict[str, Any]:
        pairs[label.partition(": ")[2].partition(",")[0]] = (prefill.name, decode.name)
        return {"right": "0", "seconds": 1.0}

    monkeypatch.setattr(run_module, "score", score)
    go(replace(grid, rates=(1e-3,)))
    own = "toy-s0-{}-0_001"
    assert pairs == {"base": ("base", "base")} | {
        "full": (own.format("full"), own.format("full")),
        "naive": ("base", own.format("full")),
        "decode": ("base", own.format("decode")),
    }


def test_a_finished_grid_has_nothing_to_do(grid: Grid, trained: list[str]) -> None:
    go(grid)
    trained.clear()
    finished, text = go(grid)
    assert finished
    assert "nothing is left" in text
    assert not trained


def test_an_interrupted_grid_goes_on(grid: Grid, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_module.train_cell

    def interrupted(cell: Cell, *arguments: Any) -> dict[str, Any]:
        if cell.system == "decode":
            raise KeyboardInterrupt
        return whole(cell, *arguments)

    monkeypatch.setattr(run_module, "train_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(grid)
    monkeypatch.setattr(run_module, "train_cell", whole)
    trained.clear()
    assert go(grid)[0]
    assert trained[0] == "train toy seed 0 decode 0.001"
    assert len(trained) == 5


def test_a_checkpoint_that_is_gone_is_trained_again_before_its_test(grid: Grid, trained: list[str]) -> None:
    go(grid)
    file = grid.results / "toy-s0-full-0.01.json"
    record = json.loads(file.read_text())
    del record["scores"]["test"]
    file.write_text(json.dumps(record))
    shutil.rmtree(grid.checkpoints)
    trained.clear()
    assert go(grid)[0]
    assert trained == [
        "train toy seed 0 full 0.01",
        "toy seed 0 full 0.01: full, test items",
        "toy seed 0 full 0.01: naive, test items",
    ]


def test_another_rate_is_added_to_what_is_there(grid: Grid, trained: list[str]) -> None:
    go(grid)
    trained.clear()
    go(replace(grid, rates=(1e-3, 1e-2, 1e-1)))
    assert [line for line in trained if line.startswith("train")] == [
        "train toy seed 0 full 0.1",
        "train toy seed 0 decode 0.1",
    ]


def test_the_longer_trainings_have_tests_of_their_own(
    grid: Grid, trained: list[str], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "toy", replace(family, longer=((1e-3, 3),)))
    go(grid)
    assert trained[-12:] == [
        "train toy seed 0 decode 0.001 x3",
        "toy seed 0 decode 0.001 x3: decode, validation items",
        "toy seed 0 decode 0.001 x3: decode, test items",
        "train toy seed 0 full 0.001 x3",
        "toy seed 0 full 0.001 x3: full, validation items",
        "toy seed 0 full 0.001 x3: naive, validation items",
        "toy seed 0 full 0.001 x3: full, test items",
        "toy seed 0 full 0.001 x3: naive, test items",
        "start from toy-s0-full-0_001-x3",
        "train toy seed 0 decode 0.001 after x3",
        "toy seed 0 decode 0.001 after x3: decode, validation items",
        "toy seed 0 decode 0.001 after x3: decode, test items",
    ]
    assert read(grid.results / "toy-s0-decode-0.001-x3.json").cell == Cell("toy", 0, "decode", 1e-3, passes=3)
    trained.clear()
    go(replace(grid, rates=(1e-2,)))
    assert not trained  # its rate is not asked for
    monkeypatch.setitem(FAMILIES, "toy", replace(family, longer=((1e-3, 3),), longest=((1e-3, 6),)))
    go(grid)
    assert trained == [
        "train toy seed 0 decode 0.001 x6",
        "toy seed 0 decode 0.001 x6: decode, validation items",
        "toy seed 0 decode 0.001 x6: decode, test items",
    ]


def test_adapters_are_trained_with_the_rest_or_alone(
    grid: Grid, trained: list[str], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "toy", replace(family, adapters=(1e-2, 1e-1)))
    go(replace(grid, adapters_only=True))
    assert trained == [
        "train toy seed 0 decode 0.01 rank 16",
        "toy seed 0 decode 0.01 rank 16: decode, validation items",
        "train toy seed 0 decode 0.1 rank 16",
        "toy seed 0 decode 0.1 rank 16: decode, validation items",
        "toy seed 0 decode 0.01 rank 16: decode, test items",
    ]
    adapter = read(grid.results / "toy-s0-decode-0.01-r16.json").cell
    assert adapter == Cell("toy", 0, "decode", 1e-2, rank=16)
    assert not adapter.in_sweep
    trained.clear()
    go(grid)
    assert trained[0] == "toy seed 0 base: base, test items"
    assert trained[-1] == "toy seed 0 decode 0.01: decode, test items"
    for folder in (grid.results, grid.checkpoints):
        shutil.rmtree(folder)
    go(grid)
    assert trained[-1] == "toy seed 0 decode 0.01 rank 16: decode, test items"
    trained.clear()
    go(replace(grid, rates=(1e-3,), adapters_only=True))
    assert not trained  # its rates are not asked for


def test_the_checkpoint_that_a_training_starts_from_is_trained_again_in_its_dtype(
    grid: Grid, trained: list[str], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "toy", replace(family, longer=((1e-3, 3),)))
    go(grid)
    (grid.results / "toy-s0-decode-0.001-after-x3.json").unlink()
    shutil.rmtree(grid.checkpoints)
    trained.clear()
    go(grid)
    assert [line for line in trained if "items" not in line] == [
        "train toy seed 0 full 0.001 x3",
        "start from toy-s0-full-0_001-x3",
        "train toy seed 0 decode 0.001 after x3",
    ]
    (grid.results / "toy-s0-decode-0.001-after-x3.json").unlink()
    shutil.rmtree(grid.checkpoints)
    for system in ("full", "decode"):
        file = grid.results / f"toy-s0-{system}-0.001-x3.json"
        record = json.loads(file.read_text())
        record["environment"]["dtype"] = "another"
        file.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"starts from toy seed 0 full 0.001 x3, whose checkpoint .* trained in another"
    ):
        go(grid)


def test_time_is_up_before_a_step_that_would_end_too_late(grid: Grid, trained: list[str]) -> None:
    finished, text = go(grid, budget_s=0.0)
    assert not finished
    assert "7 steps are left" in text
    assert len(trained) <= 1


def test_the_clock_estimates_a_kind_by_its_own_steps() -> None:
    clock = Clock(budget_s=10.0)
    assert clock.estimate("short") == 0
    clock.run(Step("short", "", lambda: None))
    clock.seconds["long"] = [20.0, 40.0]
    assert clock.estimate("long") == 30
    assert clock.estimate("unknown") == pytest.approx(20, abs=0.1)
    assert clock.allows("short")
    assert not clock.allows("long")


def test_a_checkpoint_of_another_recipe_is_not_used(grid: Grid, trained: list[str]) -> None:
    """Other items, with records in a folder of their own: of some families the rows to train on differ then, too."""
    go(grid)
    trained.clear()
    other = replace(grid, items=8, results=grid.results.with_name("other"))
    go(other)
    assert [line for line in trained if line.startswith("train")] == [
        f"train toy seed 0 {system} {rate}" for system in ("full", "decode") for rate in (0.001, 0.01)
    ]
    file = grid.results / "toy-s0-full-0.01.json"
    record = json.loads(file.read_text())
    del record["scores"]["test"]
    file.write_text(json.dumps(record))
    trained.clear()
    go(grid)
    assert trained[0] == "train toy seed 0 full 0.01"  # what is there now is the other's


def test_records_of_another_recipe_are_neither_used_nor_overwritten(grid: Grid, trained: list[str]) -> None:
    go(grid)
    with pytest.raises(UserError, match=r"toy-s0-base.json: made by another recipe \(data, items differ\)"):
        go(replace(grid, items=8))


@pytest.fixture
def elsewhere(grid: Grid, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """One rate is done on a machine of this dtype; this one is of another."""
    go(replace(grid, rates=(1e-3,)))
    dtype = run_module.preferred_dtype()
    monkeypatch.setattr(run_module, "preferred_dtype", lambda: "float8")
    monkeypatch.setattr(run_module, "environment", lambda: {"dtype": "float8"})
    shutil.rmtree(grid.checkpoints)
    trained.clear()
    return dtype


def test_other_rates_may_be_of_another_dtype(grid: Grid, trained: list[str], elsewhere: str) -> None:
    assert go(grid)[0]
    assert [line for line in trained if "0.001" in line or "base" in line] == []
    assert read(grid.results / "toy-s0-full-0.01.json").dtype == "float8"
    assert read(grid.results / "toy-s0-full-0.001.json").dtype == elsewhere


def test_a_rate_that_one_system_has_in_another_dtype_is_done_again(
    grid: Grid, trained: list[str], elsewhere: str
) -> None:
    (grid.results / "toy-s0-decode-0.001.json").unlink()
    assert go(replace(grid, rates=(1e-3,)))[0]
    assert [line for line in trained if line.startswith("train")] == [
        "train toy seed 0 full 0.001",
        "train toy seed 0 decode 0.001",
    ]
    assert {read(grid.results / f"toy-s0-{system}-0.001.json").dtype for system in ("full", "decode")} == {"float8"}


def test_longer_trainings_of_both_systems_are_of_one_dtype(
    grid: Grid, trained: list[str], elsewhere: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = Record(Cell("toy", 0, "decode", 1e-3, passes=3), read(grid.results / "toy-s0-base.json").recipe)
    longer.environment, longer.scores = {"dtype": elsewhere}, {"validation": {"decode": {"right": "0"}}}
    save(longer, grid.results)
    monkeypatch.setitem(FAMILIES, "toy", replace(family, longer=((1e-3, 3),)))
    assert go(replace(grid, rates=(1e-3,)))[0]
    assert [line for line in trained if line.startswith("train")] == [
        "train toy seed 0 decode 0.001 x3",
        "train toy seed 0 full 0.001 x3",
        "train toy seed 0 decode 0.001 after x3",
    ]


def test_a_checkpoint_of_another_dtype_that_is_gone_is_left(grid: Grid, trained: list[str], elsewhere: str) -> None:
    file = grid.results / "toy-s0-full-0.001.json"
    record = read(file)
    del record.scores["test"]
    save(record, grid.results)
    finished, text = go(replace(grid, rates=(1e-3, 2e-3)))
    assert finished  # all that can be done here
    assert f"toy seed 0 full 0.001: the best so far, trained in {elsewhere}" in text
    assert "test" not in read(file).scores
    assert [line for line in trained if "full 0.001" in line] == []


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = Record(Cell("toy", 1, "full", 3e-4), {"steps": 2}, {"dtype": "float32"}, {"seconds": 1.0})
    record.scores["test"] = {"full": {"right": "0110", "seconds": 2.0}}
    save(record, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["toy-s1-full-0.0003.json"]
    assert read(tmp_path / "toy-s1-full-0.0003.json") == record == load(record.cell, record.recipe, tmp_path)
    assert record.accuracy("test", "full") == 0.5


def test_of_equal_rates_the_lower_one_is_best() -> None:
    records = [
        Record(Cell("toy", 0, "full", rate), {}, scores={"validation": {"full": {"right": right}}})
        for rate, right in ((1e-2, "11"), (1e-3, "11"), (1e-4, "10"))
    ]
    assert best(records).cell.rate == 1e-3


def test_a_run_that_stops_early_has_every_family(family: Family) -> None:
    order = [base for (base,), *_ in cells_of([family, replace(family, name="other")], [0, 1], None)]
    assert [(cell.seed, cell.family) for cell in order] == [(0, "toy"), (0, "other"), (1, "toy"), (1, "other")]
