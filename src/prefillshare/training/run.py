"""One training run, from a checked config to the artefact on disk."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from prefillshare.errors import UserError
from prefillshare.hardware import preferred_dtype
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, DecodeModule, Manifest, load_module, save_manifest
from prefillshare.training.config import TrainConfig
from prefillshare.training.conversation import Example, read_examples
from prefillshare.training.progress import with_progress
from prefillshare.training.trainer import CacheConditionedTrainer

# Model types whose loss is tested to equal ordinary response-only loss when decode = base.
PROVEN_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def train(config: TrainConfig, *, show_progress: bool = True) -> DecodeModule:
    """Trains a decode module and saves it in `config.output_dir`, which appears complete or not at all.

    Everything that can be wrong with config and data is found before the model is loaded.

    Raises:
        UserError: no such base or data, a base of an architecture that is not proven, a row that cannot be used, or
            an output folder that is not empty.
    """
    _check_start(config)
    identity = compute_identity(config.model_name_or_path)
    tokenizer = _check_base(config)
    examples = read_examples(config.dataset_name, tokenizer, max_length=_max_length(config))
    config.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".training-", dir=config.output_dir.parent) as scratch:
        started = time.monotonic()
        trainer = make_trainer(config, examples, Path(scratch) / "trainer")
        with_progress(trainer, f"training {config.module_name}", shown=show_progress)
        folder = Path(scratch) / "module"
        save_weights(trainer, config, folder)
        manifest = Manifest(
            name=config.module_name,
            kind="lora" if config.use_peft else "full",
            base=BaseReference(name=config.model_name_or_path.resolve().name, identity=identity),
            training={
                "data": {
                    "file": config.dataset_name.name,
                    "digest": config.data_digest(),
                    "rows": len(examples),
                },
                "hyper_parameters": config.hyper_parameters(),
                "compute_dtype": _compute_dtype(config),
                "steps": trainer.state.global_step,
                "final_loss": final_loss(trainer),
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        save_manifest(folder, manifest)
        if config.output_dir.exists():
            shutil.rmtree(config.output_dir)
        folder.rename(config.output_dir)
    return load_module(config.output_dir)


def make_trainer(
    config: TrainConfig,
    examples: list[Example],
    scratch: Path,
    *,
    trainer_class: type[CacheConditionedTrainer] = CacheConditionedTrainer,
) -> CacheConditionedTrainer:
    """The trainer with its model loaded. Decode weights are float32 whatever the compute dtype."""
    dtype = _compute_dtype(config)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=config.max_steps,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,  # below 1 it is the ratio; `warmup_ratio` itself is gone from Transformers 5
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        train_sampling_strategy=config.train_sampling_strategy,
        seed=config.seed,
        bf16=dtype == "bfloat16",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    set_seed(config.seed)
    compute = getattr(torch, dtype)
    if config.use_peft:
        targets = config.lora_target_modules
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        base = None
        model = AutoModelForCausalLM.from_pretrained(config.model_name_or_path, dtype=compute)
        try:
            model = get_peft_model(model, lora)
        except ValueError as error:
            raise UserError(f"lora_target_modules: {error}") from None
    else:
        model = AutoModelForCausalLM.from_pretrained(config.model_name_or_path, dtype=torch.float32)
        # Loaded again, not copied with .to(): that would round the rotary frequencies too, and with them all base KV.
        base = AutoModelForCausalLM.from_pretrained(config.model_name_or_path, dtype=compute)
    trainer = trainer_class(model=model, base=base, args=arguments, train_dataset=examples)
    trainer.remove_callback(PrinterCallback)
    return trainer


def save_weights(trainer: CacheConditionedTrainer, config: TrainConfig, folder: Path) -> None:
    """Writes the checkpoint or adapter, with the base's tokenizer files beside a full checkpoint.

    The weights are rounded to the dtype of the base's checkpoint: what is on disk, evaluated and served, in that
    dtype or a wider one, is then the same module.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    dtype = AutoConfig.from_pretrained(config.model_name_or_path).dtype or torch.float32
    model.to(dtype).save_pretrained(folder)
    if config.use_peft:
        return
    for name in _TOKENIZER_FILES:
        if (config.model_name_or_path / name).is_file():
            shutil.copyfile(config.model_name_or_path / name, folder / name)


def final_loss(trainer: Trainer) -> float:
    """Loss of the last optimiser step, before that step."""
    return float([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1])


def _check_start(config: TrainConfig) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: training runs in one process; start it without a launcher"
        )
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not config.overwrite_output_dir:
        raise UserError(f"output_dir: {folder} is not empty; name another folder or set overwrite_output_dir=true")


def _check_base(config: TrainConfig) -> PreTrainedTokenizerBase:
    # Not by AutoConfig, which raises for what it does not know before it can be named here.
    architecture = json.loads((config.model_name_or_path / "config.json").read_text()).get("model_type")
    if architecture not in PROVEN_ARCHITECTURES:
        raise UserError(
            f"model_name_or_path: {config.model_name_or_path} is of architecture {architecture!r}, for which training "
            f"on base KV is not proven; use a base of {', '.join(PROVEN_ARCHITECTURES)}"
        )
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model_name_or_path: the tokenizer in {config.model_name_or_path} has no eos_token, so a response could "
            "not end; set it in tokenizer_config.json"
        )
    return tokenizer


def _max_length(config: TrainConfig) -> int:
    limit = AutoConfig.from_pretrained(config.model_name_or_path).max_position_embeddings
    if config.max_length is not None and config.max_length > limit:
        raise UserError(f"max_length: {config.max_length} is more than the base's {limit} positions; lower it")
    return config.max_length or limit


def _compute_dtype(config: TrainConfig) -> str:
    return preferred_dtype() if config.dtype == "auto" else config.dtype
