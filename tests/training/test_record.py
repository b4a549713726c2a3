from pathlib import Path
from typing import Any

import pytest

from prefillshare.errors import UserError
from prefillshare.training.config import TrainConfig
from prefillshare.training.dataset import LoadedData
from prefillshare.training.record import RECORD_NAME, RunRecord, record_of, require_same_run
from tests.training.tiny import ragged_examples

PASSES = "what passes are computed in (bf16, fp16)"
ROWS_PER_STEP = "per_device_train_batch_size * gradient_accumulation_steps * processes"


def record(folder: Path, *, examples: int = 6, **fields: Any) -> RunRecord:
    config = TrainConfig(
        model_name_or_path=folder / "base", dataset_name=folder / "rows", output_dir=folder / "out", **fields
    )
    data = LoadedData(ragged_examples(count=examples), examples, [], "sha256:data")
    return record_of(config, config.arguments(), data, base="sha256:base", start=None)


def differences(folder: Path, before: RunRecord, now: RunRecord) -> list[str]:
    (folder / RECORD_NAME).write_text(before.model_dump_json())
    try:
        require_same_run(folder / "checkpoint-1", now)
    except UserError as error:
        lines = str(error).splitlines()[1:]
        if not lines:  # refused for another reason
            raise
        return lines
    return []


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2}, f"{ROWS_PER_STEP}: was 4, is 2"),
        ({}, {"gradient_accumulation_steps": 2}, f"{ROWS_PER_STEP}: was 8, is 16"),
        ({}, {"dataloader_drop_last": True}, "dataloader_drop_last: was False, is True"),
        ({}, {"auto_find_batch_size": True}, "auto_find_batch_size: was False, is True"),
        ({}, {"accelerator_config": {"even_batches": False}}, "accelerator_config.even_batches: was True, is False"),
        ({}, {"packing": True}, "packing: was False, is True"),
        ({"packing": True}, {"packing": True, "max_length": 64}, "max_length: was None, is 64"),
        ({"use_peft": True}, {"use_peft": True, "lora_r": 8}, "lora_r: was 16, is 8"),
        ({"use_peft": True}, {"use_peft": True, "use_rslora": True}, "use_rslora: was False, is True"),
        (
            {"use_peft": True},
            {"use_peft": True, "lora_target_modules": ["v_proj", "q_proj"]},
            "lora_target_modules: was ['all-linear'], is ['q_proj', 'v_proj']",
        ),
        ({}, {"use_peft": True}, "use_peft: was full, is lora"),
        ({"bf16": True}, {"bf16": False}, f"{PASSES}: was bfloat16, is float32"),
        ({}, {"learning_rate": 1e-3}, "learning_rate: was 2e-05, is 0.001"),
        ({}, {"weight_decay": 0.1}, "weight_decay: was 0.0, is 0.1"),
        ({}, {"adam_beta1": 0.8}, "adam_beta1: was 0.9, is 0.8"),
        ({}, {"adam_beta2": 0.95}, "adam_beta2: was 0.999, is 0.95"),
        ({}, {"adam_epsilon": 1e-6}, "adam_epsilon: was 1e-08, is 1e-06"),
        ({}, {"optim": "sgd"}, "optim: was adamw_torch_fused, is sgd"),
        ({}, {"optim_args": "momentum=0.9"}, "optim_args: was None, is momentum=0.9"),
        ({}, {"lr_scheduler_type": "cosine"}, "lr_scheduler_type: was linear, is cosine"),
        (
            {"lr_scheduler_kwargs": '{"min_lr": 1e-6}'},
            {"lr_scheduler_kwargs": {"min_lr": 1e-7}},
            "lr_scheduler_kwargs: was {'min_lr': 1e-06}, is {'min_lr': 1e-07}",
        ),
    ],
)
def test_what_would_be_another_run_is_named(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], line: str
) -> None:
    assert differences(tmp_path, record(tmp_path, **before), record(tmp_path, **now)) == [f"  {line}"]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        ({}, {"warmup_steps": 5, "max_steps": 7, "save_steps": 3, "max_grad_norm": 0.5}),
        ({"optim": "sgd"}, {"optim": "sgd"}),
        ({"lr_scheduler_kwargs": '{"power": 2}'}, {"lr_scheduler_kwargs": {"power": 2}}),
        ({}, {"lora_alpha": 4}),  # of a run without an adapter
        ({"use_peft": True}, {"use_peft": True, "lora_dropout": 0.5}),
        (
            {"use_peft": True, "lora_target_modules": ["v_proj", "q_proj"]},
            {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]},
        ),
    ],
)
def test_the_rest_may_change(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    assert differences(tmp_path, record(tmp_path, **before), record(tmp_path, **now)) == []


def test_targets_may_be_left_to_peft(tmp_path: Path) -> None:
    """TRL writes `null` when it dumps a config that named none."""
    assert record(tmp_path, use_peft=True, lora_target_modules=None).adapter["lora_target_modules"] == []


def test_an_adapter_to_start_from_brings_its_own_fields(tmp_path: Path) -> None:
    assert record(tmp_path, use_peft=True, start_from=tmp_path / "adapter").adapter == {}


@pytest.mark.parametrize(
    "sampling", [{"dataloader_drop_last": True}, {"train_sampling_strategy": "group_by_length"}], ids=str
)
def test_how_a_step_is_divided_matters_where_it_decides_its_rows(tmp_path: Path, sampling: dict[str, Any]) -> None:
    one, two = (
        record(tmp_path, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, **sampling)
        for steps in (1, 2)
    )
    assert differences(tmp_path, one, two) == [
        "  per_device_train_batch_size: was 8, is 4",
        "  gradient_accumulation_steps: was 1, is 2",
    ]


def test_as_many_processes_as_before_unless_batches_are_split_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {"accelerator_config": {"split_batches": True}}
    alone = [record(tmp_path), record(tmp_path, **split)]
    monkeypatch.setattr("trl.SFTConfig.world_size", 2)
    assert differences(tmp_path, alone[0], record(tmp_path)) == [f"  {ROWS_PER_STEP}: was 8, is 16"]
    assert differences(tmp_path, alone[0], record(tmp_path, per_device_train_batch_size=4)) == []
    assert differences(tmp_path, alone[1], record(tmp_path, **split)) == []


def test_rows_that_are_left_out_are_named_where_nothing_else_tells_why(tmp_path: Path) -> None:
    before, now = record(tmp_path), record(tmp_path, examples=5)
    (line,) = differences(tmp_path, before, now)
    assert line.startswith("  rows that are used (max_length, skip_invalid, ")
    assert ", is 5 conversations, sha256:" in line
    assert differences(tmp_path, before, now.model_copy(update={"data": "sha256:other"})) == [
        "  dataset_name: was sha256:data, is sha256:other"
    ]


def test_a_record_of_another_version_says_so(tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_text('{"format_version": 3, "base": "sha256:base"}')
    with pytest.raises(UserError, match=r"is of another version of PrefillShare: its format_version is 3, not 5.*or "):
        require_same_run(tmp_path / "checkpoint-1", record(tmp_path))
