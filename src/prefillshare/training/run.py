"""One training run, from a checked config to the artefact on disk."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)
from trl import SFTConfig, get_peft_config

from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import DecodeModule, load_module, save_manifest
from prefillshare.training.chat import prints_date
from prefillshare.training.config import TrainConfig
from prefillshare.training.conversation import Example
from prefillshare.training.dataset import LoadedData, read_examples
from prefillshare.training.launch import check_launch
from prefillshare.training.models import load_model, require_proven, whole_on_every_process
from prefillshare.training.outcome import facts_of, manifest_of
from prefillshare.training.output import (
    UNFINISHED,
    check_output,
    checkpoint_to_resume,
    is_of_run,
    publish,
    start_run,
)
from prefillshare.training.packing import pack, to_dataset
from prefillshare.training.progress import with_progress
from prefillshare.training.record import record_of, require_same_run, rows_per_batch
from prefillshare.training.refusals import TEMPLATE
from prefillshare.training.sources import require_splits
from prefillshare.training.start import adapted, check_start
from prefillshare.training.steps import before_first_step, require_last_step
from prefillshare.training.tokens import other_tokens
from prefillshare.training.trainer import CacheConditionedTrainer

_PACKED_LENGTH = 1024  # tokens; what max_length is in TRL unless set
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_NAMED_TEMPLATES = "additional_chat_templates"  # `tool_use`, say


def train(config: TrainConfig, *, show_progress: bool = True) -> DecodeModule:
    """Trains a decode module and saves it in `config.output_dir`, beside the run's checkpoints.

    Everything that can be wrong with config and data is found before the model is loaded, or where only Transformers
    can tell, before the first step; checkpoints of an earlier run are removed after that. The folder becomes a module
    when training has ended: a module that was there before is replaced only then. Under `accelerate launch` every
    process calls this, and the main process writes.

    Raises:
        UserError: no such base or data, a base of an architecture that is not proven, another end token than its,
            nothing of it to start from, a row that cannot be used, no rows of their own to evaluate on, an output
            folder that is in use, a checkpoint of another run, an optimiser or schedule that cannot be made, a
            launcher's wish that is not proven (LoRA under FSDP, DeepSpeed, torch.compile) or not the config's
            (another dtype), or training that was stopped before its last step.
    """
    check_launch(config)
    main = int(os.environ.get("RANK", "0")) == 0
    resume_from = checkpoint_to_resume(config, tell=show_progress and main)
    check_output(config, resume_from)
    identity = compute_identity(config.model_name_or_path)
    tokenizer = _check_base(config)
    if dated := prints_date(tokenizer):
        _tell(f"model_name_or_path: {config.model_name_or_path}: {dated}", shown=show_progress and main)
    start = check_start(config)
    if config.start_from and (other := other_tokens("start_from", config.model_name_or_path, config.start_from)):
        _tell(other, shown=show_progress and main)
    arguments = config.arguments()
    # `do_eval` alone has Transformers evaluate nothing while it trains.
    evaluated = arguments.do_eval and (arguments.eval_strategy != "no" or arguments.eval_on_start)
    if evaluated:
        require_splits(config.dataset_name)
    data = read(config, tokenizer, config.get("dataset_train_split"), show_progress=show_progress and main)
    held_out = None
    if evaluated:
        held_out = read(config, tokenizer, config.get("dataset_test_split"), show_progress=show_progress and main)
    record = record_of(config, arguments, data, base=identity.digest, start=start)
    data_facts = facts_of(config, data)
    if resume_from is not None:
        require_same_run(resume_from, record)
    started = time.monotonic()
    trainer = make_trainer(config, data.examples, tokenizer, held_out=held_out.examples if held_out else None)
    del data, held_out  # the trainer has its own copy, and every process would keep them as long as it trains

    def start_here() -> None:
        if main and not is_of_run(resume_from, config.output_dir):
            start_run(config.output_dir, record)
        trainer.accelerator.wait_for_everyone()

    before_first_step(trainer, start_here)
    with_progress(
        trainer,
        f"training {config.module_name}",
        shown=show_progress and main,
        resume_from_checkpoint=None if resume_from is None else str(resume_from),
    )
    require_last_step(trainer)
    folder = config.output_dir / UNFINISHED
    if main:  # a process that lags behind must not remove what the main one is writing
        shutil.rmtree(folder, ignore_errors=True)
    save_weights(trainer, config, folder)
    if main:
        seconds = time.monotonic() - started
        manifest = manifest_of(config, trainer, record, identity=identity, data=data_facts, seconds=seconds)
        save_manifest(folder, manifest)
        publish(folder, config.output_dir, alone=config.overwrite_output_dir)
    trainer.accelerator.wait_for_everyone()
    return load_module(config.output_dir)


def read(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, split: str, *, show_progress: bool) -> LoadedData:
    """One split of the run's data. Rows that were left out are named on stderr.

    Raises:
        UserError: a row cannot be used, and `skip_invalid` is not set.
    """
    data = read_examples(
        config.dataset_name,
        tokenizer,
        max_length=_max_length(config),
        skip_invalid=config.skip_invalid,
        split=split,
        instructions=config.instructions,
        show_progress=show_progress,
    )
    if data.skipped:
        first = data.skipped[0]
        more = f" (the first: {first.where}: {first.problem})"
        left_out = f"{config.dataset_name}: left out {len(data.skipped)} rows that cannot be used{more}"
        _tell(left_out, shown=show_progress)
    return data


def make_trainer(
    config: TrainConfig,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    held_out: Sequence[Example] | None = None,
    trainer_class: type[CacheConditionedTrainer] = CacheConditionedTrainer,
) -> CacheConditionedTrainer:
    """The trainer with its model loaded. Decode weights are float32 whatever the compute dtype.

    Raises:
        UserError: LoRA targets that the base does not have, an adapter to start from that does not fit, or what only
            the trainer finds wrong with the config.
    """
    arguments = config.arguments()
    rows = _dataset(config, examples)
    _require_batch(arguments, len(rows))
    set_seed(arguments.seed)
    compute = getattr(torch, config.compute_dtype)
    attention = config.get("attn_implementation")
    base = None
    model: PreTrainedModel | PeftModel
    if config.use_peft:  # one copy for both roles, in the dtype that the base is served in
        model = load_model(config.model_name_or_path, dtype=compute, attn_implementation=attention)
        if config.start_from:
            model = adapted(model, config.start_from)
    else:
        model = load_model(config.start_from or config.model_name_or_path, attn_implementation=attention)
        # A server reads in the module's folder where answers end: not where those of `start_from` did. By the base's
        # config.json alone: its generation_config.json is copied, for Transformers may find too much fault to save it.
        base_config = AutoConfig.from_pretrained(config.model_name_or_path)
        model.generation_config = GenerationConfig.from_model_config(base_config)
        # Loaded again, not copied with .to(): that would round the rotary frequencies too, and with them all base KV.
        with whole_on_every_process():
            base = load_model(config.model_name_or_path, dtype=compute, attn_implementation=attention)
    try:
        trainer = trainer_class(
            model=model,
            base=base,
            args=arguments,
            train_dataset=rows,
            eval_dataset=None if held_out is None else to_dataset([example] for example in held_out),
            processing_class=tokenizer,
            peft_config=_peft_config(config),
        )
    except ValueError as error:
        about_targets = config.use_peft and "target" in str(error).lower()
        raise UserError(f"{'lora_target_modules' if about_targets else 'training config'}: {error}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def save_weights(trainer: CacheConditionedTrainer, config: TrainConfig, folder: Path) -> None:
    """Writes the checkpoint or adapter, with the base's tokenizer files beside a full checkpoint.

    The weights are rounded to the dtype of the base's checkpoint: what is on disk, evaluated and served, in that
    dtype or a wider one, is then the same module. Called by every process; the main one writes.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    if other := sorted(weights.keys() ^ trainer.tensor_names):
        raise RuntimeError(f"the model was wrapped in a way that changes its tensors: {', '.join(other[:3])}, ...")
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    dtype = AutoConfig.from_pretrained(config.model_name_or_path).dtype or torch.float32
    rounded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    if not config.use_peft:
        model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=rounded)
    if config.use_peft:
        return
    for name in _TOKENIZER_FILES:
        if (config.model_name_or_path / name).is_file():
            shutil.copyfile(config.model_name_or_path / name, folder / name)
    if (templates := config.model_name_or_path / _NAMED_TEMPLATES).is_dir():
        shutil.copytree(templates, folder / _NAMED_TEMPLATES, dirs_exist_ok=True)


def _tell(line: str, *, shown: bool) -> None:
    if shown:
        print(line, file=sys.stderr)


def _dataset(config: TrainConfig, examples: Sequence[Example]) -> Dataset:
    rows = [[number] for number in range(len(examples))]
    if config.get("packing"):
        # Unless told otherwise rows are as long as TRL packs them, not as long as the base's context: an epoch of a
        # few huge rows would be a few steps.
        lengths = [len(example.ids) for example in examples]
        rows = pack(lengths, row_length=config.get("max_length") or max(_PACKED_LENGTH, max(lengths)))
    dataset = to_dataset([examples[number] for number in row] for row in rows)
    # Here, as TRL does it where it prepares datasets, which it does not do with ours.
    return dataset.shuffle(seed=config.get("seed")) if config.get("shuffle_dataset") else dataset


def _require_batch(arguments: SFTConfig, rows: int) -> None:
    batch = rows_per_batch(arguments)
    if arguments.dataloader_drop_last and rows < batch:
        raise UserError(
            f"dataloader_drop_last: a batch of all processes has {batch} rows and there are {rows}, so none would be "
            "trained; leave it out, or lower per_device_train_batch_size"
        )


def _peft_config(config: TrainConfig) -> PeftConfig | None:
    if config.start_from:
        return None  # an adapter to start from brings its own
    found: PeftConfig | None = get_peft_config(config.model_arguments())
    if found is not None and found.target_modules == {"all-linear"}:
        found.target_modules = "all-linear"  # PEFT knows the word, but only outside of a list
    return found


def _check_base(config: TrainConfig) -> PreTrainedTokenizerBase:
    require_proven(config.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model_name_or_path: the tokenizer in {config.model_name_or_path} has no eos_token, so a response could "
            "not end; set it in tokenizer_config.json"
        )
    told = config.get("eos_token")
    if told not in (None, tokenizer.eos_token):
        raise UserError(f"eos_token: {told!r} is not the base's, {tokenizer.eos_token!r}: {TEMPLATE}")
    return tokenizer


def _max_length(config: TrainConfig) -> int:
    limit: int = AutoConfig.from_pretrained(config.model_name_or_path).max_position_embeddings
    wanted = config.get("max_length")
    if wanted is not None and wanted > limit:
        raise UserError(f"max_length: {wanted} is more than the base's {limit} positions; lower it")
    return wanted or limit
