"""One training of a cell: the decode module by `prefillshare train`, full fine-tuning by TRL's own SFTTrainer.

Both get the same rows in the same batches and order, for as many steps, with the same schedule, optimiser, clipping
and seed, float32 weights and the dtype this machine computes fast. The loss is on the response alone.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from experiments.accuracy.cells import BATCH_SIZE, WARMUP_RATIO, Cell
from experiments.accuracy.items import Item
from prefillshare.errors import UserError
from prefillshare.hardware import preferred_dtype
from prefillshare.training.config import TrainConfig
from prefillshare.training.dataset import read_examples
from prefillshare.training.progress import with_progress
from prefillshare.training.run import train
from prefillshare.training.trainer import IGNORED

Row = dict[str, str]
Recipe = dict[str, Any]
_RECIPE = "recipe.json"


def train_cell(
    cell: Cell, items: list[Item], base: Path, folder: Path, start_from: Path | None = None
) -> dict[str, Any]:
    """Writes the checkpoint to `folder`, in the dtype of the base's, and returns what to record of the training.

    `start_from` is the checkpoint that a decode module starts from, in the place of the base.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [_row(item, tokenizer) for item in items]
    data = folder.parent / f"{folder.name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = time.monotonic()
    if cell.system == "decode":
        loss = _train_decode(cell, data, base, folder, start_from)
    else:
        loss = _train_full(cell, data, rows, tokenizer, base, folder)
    return {"seconds": round(time.monotonic() - started, 1), "final_loss": loss}


def keep_recipe(folder: Path, recipe: Recipe) -> None:
    """Says beside a checkpoint that `train_cell` has written what it was made by."""
    (folder / _RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")


def is_trained(folder: Path, recipe: Recipe) -> bool:
    """Whether there is a whole checkpoint made by this recipe: with other items or another base it would be another."""
    file = folder / _RECIPE
    return file.is_file() and json.loads(file.read_text()) == recipe


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _row(item: Item, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Text behind the chat template, as a server renders it. With messages, TRL's loss would also be on what the
    template writes behind the end of the response, which no server generates."""
    prompt = tokenizer.apply_chat_template(item.prompt, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    return {"prompt": prompt, "completion": item.answer}


def _common(cell: Cell) -> dict[str, Any]:
    """What both trainings are told, by the names that both know."""
    return {
        "learning_rate": cell.rate,
        "num_train_epochs": cell.passes,
        "per_device_train_batch_size": BATCH_SIZE,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "warmup_steps": WARMUP_RATIO,  # below 1 it is the ratio
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",  # the rows are in order already
        "seed": cell.seed,
    }


def _train_decode(cell: Cell, data: Path, base: Path, folder: Path, start_from: Path | None) -> float:
    own = {
        "model_name_or_path": base,
        "dataset_name": data,
        "output_dir": folder,
        "start_from": start_from,
        "name": cell.folder,
    }
    adapter = {"use_peft": True, "lora_r": cell.rank, "lora_alpha": 2 * cell.rank} if cell.rank else {}
    config = TrainConfig.model_validate({**own, **adapter, **_common(cell)})
    return float(train(config).manifest.training["final_loss"])


def _train_full(
    cell: Cell, data: Path, rows: list[Row], tokenizer: PreTrainedTokenizerBase, base: Path, folder: Path
) -> float:
    on_gpu = torch.accelerator.is_available()
    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        bf16=preferred_dtype() == "bfloat16",
        completion_only_loss=True,
        max_length=None,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        **_common(cell),
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    _check_same_tokens(trainer.train_dataset, data, tokenizer)
    trainer.remove_callback(PrinterCallback)
    with_progress(trainer, f"full fine-tuning {cell.name}")
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.to(AutoModelForCausalLM.from_pretrained(base).dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1])


def _check_same_tokens(prepared: Any, data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """TRL's tokens and loss mask are those that the decode module is trained on, or the comparison is void."""
    for row, example in zip(prepared, read_examples(data, tokenizer).examples, strict=True):
        ((start, _),) = example.spans
        if row["input_ids"] != example.ids or row["labels"] != [IGNORED] * start + example.ids[start:]:
            raise UserError(f"{data}: TRL and prefillshare make different tokens of a row; check the versions of both")
