"""The same YAML in two processes on CPU, started as users start them, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefillshare.errors import UserError
from prefillshare.module import load_module
from prefillshare.training import run
from prefillshare.training.config import load_train_config
from prefillshare.training.launch import check_launch
from prefillshare.training.run import train
from tests.training.tiny import save_base

DDP = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # two processes on CPU all the same
    "use_cpu": True,
    "num_machines": 1,
    "num_processes": 2,
    "mixed_precision": "no",
}
FSDP = DDP | {
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,  # Accelerate's default: Transformers loads one process's weights
    },
}


def losses(module: Path) -> list[float]:
    state = json.loads((module / "checkpoint-4" / "trainer_state.json").read_text())
    return [value for entry in state["log_history"] for key, value in entry.items() if key in ("loss", "grad_norm")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Rows and responses of different lengths, so that a mean of the processes' means would differ.

    In order, so that the prompts of the first process's batches share nothing and those of the second's do: the base
    pass then takes one forward in one process and two in the other.
    """
    save_base(tmp_path / "base")
    words = ("one", "two", "three", "four", "fifteen", "six", "seven", "eighty-one")
    prompts = ("{}: ", "{}: ", "say {}: ", "say {}: ") * 2
    rows = [{"prompt": prompt.format(word), "completion": word} for word, prompt in zip(words, prompts, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": "base", "dataset_name": "rows.jsonl", "output_dir": "one", "max_steps": 4,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.01,
        "bf16": False, "logging_steps": 1, "save_steps": 4, "use_cpu": True, "lora_dropout": 0.0,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("launcher", "use_peft"),
    [("accelerate", False), ("torchrun", True), ("fsdp", False)],
    ids=["ddp-full", "ddp-lora", "fsdp-full"],
)
def test_two_processes_have_the_losses_of_one(recipe: Path, launcher: str, use_peft: bool) -> None:
    folder = recipe.parent
    if launcher == "torchrun":
        launch = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "prefillshare", "train"]
    else:
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(FSDP if launcher == "fsdp" else DDP))
        launch = ["accelerate.commands.accelerate_cli", "launch", "--config_file", str(folder / "accelerate.yaml")]
        on_cpu = [str(Path(__file__).with_name("fsdp_on_cpu.py"))]
        launch += on_cpu if launcher == "fsdp" else ["-m", "prefillshare", "train"]
    command = [sys.executable, "-m", *launch, str(recipe), f"use_peft={use_peft}", f"output_dir={folder / 'two'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-3000:]
    if launcher == "fsdp":
        assert ran.stdout.count("DistributedType.FSDP sharded") == 2, ran.stdout

    alone = train(
        load_train_config(recipe, [f"use_peft={use_peft}", "per_device_train_batch_size=4"]), show_progress=False
    )
    assert losses(folder / "two") == pytest.approx(losses(alone.path), abs=1e-4)
    assert load_module(folder / "two").kind == alone.kind


def test_deepspeed_is_refused_when_the_launcher_asks_for_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_train_config(recipe)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"accelerate launch: DeepSpeed is not proven .* use FSDP"):
        train(config)


def test_compilation_is_refused_when_the_launcher_asks_for_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_train_config(recipe)
    monkeypatch.setattr(run, "compute_identity", lambda _: pytest.fail("the base was read before it was refused"))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(UserError, match=r"ACCELERATE_DYNAMO_BACKEND: torch.compile \(INDUCTOR\) .* --dynamo_backend"):
        train(config)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # as `accelerate launch` sets it by itself
    check_launch(config)


@pytest.mark.parametrize(
    ("asked", "given"), [("bf16", {"bf16": False}), ("fp16", {"bf16": True}), ("fp8", {"bf16": True})]
)
def test_passes_in_another_dtype_than_the_runs_are_refused_when_the_launcher_asks_for_them(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, asked: str, given: dict[str, bool]
) -> None:
    config = load_train_config(recipe).changed(**given)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    said = f"asks for passes in {asked}, and the run computes in {config.compute_dtype}, .*; set mixed_precision"
    with pytest.raises(UserError, match=f"ACCELERATE_MIXED_PRECISION: `accelerate launch` {said}"):
        train(config)


@pytest.mark.parametrize(
    ("asked", "given"), [("BF16", {"bf16": True}), ("no", {"bf16": True}), ("no", {"bf16": False})]
)
def test_the_launcher_may_ask_for_the_runs_own_dtype_or_none(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, asked: str, given: dict[str, bool]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    config = load_train_config(recipe).changed(**given)
    check_launch(config)
    assert config.arguments().mixed_precision == ("bf16" if given["bf16"] else "no")  # what Accelerate is told


@pytest.mark.parametrize("asked", ["field", "launcher"])
def test_lora_under_fsdp_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the data was read before it was refused")

    monkeypatch.setattr(run, "read", read)
    overrides = ["use_peft=true"]
    if asked == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        overrides.append("fsdp=full_shard")
    with pytest.raises(UserError, match=r"use_peft: .* under FSDP.*use_peft=false, or .* torchrun \(DDP\)"):
        train(load_train_config(recipe, overrides))
