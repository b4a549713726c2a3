import copy
import json
from pathlib import Path

import pytest
import torch
from trl import SFTConfig

from examples.demo import compare as room
from examples.demo.tasks import Item, Row, Task
from prefillshare.training.packing import to_dataset
from prefillshare.training.trainer import collate
from tests.training.tiny import ARCHITECTURES, byte_tokenizer, ordinary_loss, ragged_examples, save_base, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_fine_tuning_has_the_loss_and_the_gradients_of_ordinary_training(
    tmp_path: Path, architecture: str
) -> None:
    for start in (0, 4):
        model = tiny_model(1, architecture)
        ordinary = copy.deepcopy(model)
        rows = [[example] for example in ragged_examples(start=start)]
        trainer = room.FullFineTuningTrainer(
            model=model,
            base=tiny_model(0, architecture),
            args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False),
            train_dataset=to_dataset(rows),
            processing_class=byte_tokenizer(),
        )
        loss = trainer.compute_loss(model, collate(rows))
        expected = ordinary_loss(ordinary, [row[0] for row in rows])
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        loss.backward()
        expected.backward()
        for ours, theirs in zip(model.parameters(), ordinary.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


def few_rows(task: Task, items: int = 4, batch_size: int = 4) -> list[Row]:
    context = ({"role": "system", "content": "Answer."},)
    answer = {"sql": "SELECT 1;", "json": "[1]"}[task]
    return [Row(context, Item(task, f"question {n}", answer), is_short=n % 2 == 0) for n in range(items)]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks that a tiny model learns by heart. Returns where their scores go."""
    save_base(tmp_path / "artifacts" / "base")
    (tmp_path / "recipes").mkdir()
    for task in ("sql", "json"):
        recipe = {
            "model_name_or_path": "../artifacts/base",
            "dataset_name": f"../artifacts/data/{task}.jsonl",
            "output_dir": f"../artifacts/modules/{task}",
            "max_steps": 40,
            "learning_rate": 0.01,
            "gradient_checkpointing": False,
            "save_strategy": "no",
        }
        (tmp_path / "recipes" / f"{task}.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(room, "HERE", tmp_path / "recipes")
    monkeypatch.setattr(room, "MAX_NEW_TOKENS", 16)  # of those that never end; the answers have 3 and 9
    monkeypatch.setattr(room, "held_out_rows", few_rows)
    monkeypatch.setattr(room, "training_rows", few_rows)
    return tmp_path / "artifacts" / "compare.json"


def test_systems_are_scored_once_and_again_when_something_changed(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room.compare(4)
    scores = json.loads(results.read_text())
    for task in ("sql", "json"):
        of_task = scores[task]
        assert {system: score["right"] for system, score in of_task.items() if system != "naive sharing"} == {
            "base": 0,
            "full fine-tuning": 4,
            "decode module": 4,
        }
        assert of_task["decode module"]["right_short"] == 2
        # Naive sharing is the weights of full fine-tuning on the base's KV.
        prefill, decode = zip(*(of_task[system]["weights"] for system in room.SYSTEMS), strict=True)
        assert prefill[0] == prefill[2] == prefill[3] == decode[0]
        assert prefill[1] == decode[1] == decode[2]
        assert len({*decode}) == 3
    table = capsys.readouterr().out
    assert "| json (4) | 0.00 (0.00-0.49) | 1.00 (0.51-1.00) |" in table

    scored = []

    def score_again(label: str, *arguments: object) -> room.Score:
        scored.append(label)
        return original(label, *arguments)

    original = room._score
    monkeypatch.setattr(room, "_score", score_again)
    monkeypatch.setattr(room, "train", lambda _: pytest.fail("trained twice"))
    room.compare(4)
    assert scored == []

    # Killed while the last system was being scored: the rest is kept.
    del scores["sql"]["decode module"]
    results.write_text(json.dumps(scores))
    room.compare(4)
    assert scored == ["sql: decode module"]

    scored.clear()
    room.compare(2)
    assert len(scored) == 8
