"""Both systems really are trained on the same tokens in the same order, and really answer."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.accuracy import answering, training
from experiments.accuracy.cells import BATCH_SIZE, Cell, read
from experiments.accuracy.items import Family, Size
from experiments.accuracy.run import Grid
from experiments.accuracy.training import train_cell
from prefillshare import hardware
from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import load_module
from tests.experiments.accuracy.conftest import toy
from tests.experiments.accuracy.test_run import go


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (training, answering, hardware):
        monkeypatch.setattr(module, "preferred_dtype", lambda: "float32")


def losses(base: Path, folder: Path, steps: int) -> tuple[float, float]:
    items = toy(0, Size(steps * BATCH_SIZE, 0, 0)).train
    full, decode = (train_cell(Cell("toy", 0, s, 1e-9), items, base, folder / s) for s in ("full", "decode"))
    return full["final_loss"], decode["final_loss"]


def test_without_learning_both_have_the_same_loss_on_the_last_batch(base: Path, tmp_path: Path) -> None:
    """Rows differ in their loss, so this is the same batch with the same mask."""
    one, other = losses(base, tmp_path / "one", steps=1), losses(base, tmp_path / "three", steps=3)
    assert one[0] == pytest.approx(one[1], abs=1e-4)
    assert other[0] == pytest.approx(other[1], abs=1e-4)
    assert abs(one[0] - other[0]) > 1e-2


def test_full_fine_tuning_changes_the_weights_and_keeps_the_dtype(base: Path, tmp_path: Path) -> None:
    items = toy(0, Size(2 * BATCH_SIZE, 0, 0)).train
    train_cell(Cell("toy", 0, "full", 1e-2), items, base, tmp_path / "full")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "full"))
    assert after.dtype == before.dtype
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_a_decode_module_may_start_from_full_fine_tuning(base: Path, tmp_path: Path) -> None:
    items = toy(0, Size(2 * BATCH_SIZE, 0, 0)).train
    full, decode = tmp_path / "full", tmp_path / "decode"
    train_cell(Cell("toy", 0, "full", 1e-2), items, base, full)
    train_cell(Cell("toy", 0, "decode", 1e-9, after=1), items, base, decode, full)
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (full, decode))
    assert torch.allclose(before.lm_head.weight, after.lm_head.weight, atol=1e-6)
    assert load_module(decode).manifest.base.identity == compute_identity(base)


def test_an_adapter_is_trained_and_answers(base: Path, tmp_path: Path, family: Family) -> None:
    data = toy(0, Size(2 * BATCH_SIZE, 0, 4))
    adapter = tmp_path / "adapter"
    train_cell(Cell("toy", 0, "decode", 0.5, rank=16), data.train, base, adapter)
    assert load_module(adapter).kind == "lora"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 32)
    answers = []
    for decode in (base, adapter):
        answering.score("", family, data.test, base, decode, tmp_path / "answers.txt")
        answers.append((tmp_path / "answers.txt").read_text())
    assert answers[0] != answers[1]


def test_other_tokens_in_trl_void_the_comparison(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training.SFTTrainer

    def with_a_longer_first_row(train_dataset: object, **arguments: object) -> object:
        rows = list(train_dataset)  # type: ignore[call-overload]
        rows[0] = {**rows[0], "completion": rows[0]["completion"] + "!"}
        return whole(train_dataset=training.Dataset.from_list(rows), **arguments)

    monkeypatch.setattr(training, "SFTTrainer", with_a_longer_first_row)
    items = toy(0, Size(BATCH_SIZE, 0, 0)).train
    with pytest.raises(UserError, match="different tokens"):
        train_cell(Cell("toy", 0, "full", 1e-2), items, base, tmp_path / "full")


def test_a_grid_from_training_to_records(grid: Grid, family: Family) -> None:
    assert go(grid)[0]
    records = [read(file) for file in sorted(grid.results.iterdir())]
    assert {str(record.cell) for record in records} == {
        "toy seed 0 base",
        *(f"toy seed 0 {system} {rate:g}" for system in ("full", "decode") for rate in family.rates),
    }
    tested = {key: of["right"] for record in records for key, of in record.scores.get("test", {}).items()}
    assert {key: len(right) for key, right in tested.items()} == {"base": 4, "full": 4, "naive": 4, "decode": 4}
    answers = (grid.checkpoints / "answers" / "toy-s0-base-base-test.txt").read_text()
    assert answers.count("\n<") == 4
    assert json.dumps(records[0].environment)
