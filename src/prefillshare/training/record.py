"""What a run's checkpoints were made of, written beside them, and whether a run may go on from them.

A checkpoint holds weights, optimiser and position in the data, but not which base and which rows they belong to. Going
on with others would train on another base's KV, or skip rows that were never seen, and the manifest would not say so.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from trl import SFTConfig

from prefillshare.errors import UserError
from prefillshare.fields import Section
from prefillshare.hardware import DType
from prefillshare.instructions import Placement
from prefillshare.module import ModuleKind
from prefillshare.training.config import TrainConfig
from prefillshare.training.conversation import Example
from prefillshare.training.dataset import LoadedData

RECORD_NAME = "prefillshare-run.json"
START_AGAIN = "start again without resume_from_checkpoint, with overwrite_output_dir=true or another output_dir"

_ORDER = (
    "packing", "shuffle_dataset", "train_sampling_strategy", "seed", "data_seed", "dataloader_drop_last",
    "auto_find_batch_size",
)  # fmt: skip
_SAMPLING = ("split_batches", "even_batches", "use_seedable_sampler")  # fields of accelerator_config
# A checkpoint's optimiser and schedule bring these back: other values would be ignored, or meet a state not theirs.
_RESTORED = (
    "optim", "optim_args", "optim_target_modules", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs",
)  # fmt: skip
# With these an adapter's weights are another function. PEFT loads them under the new values without a word.
_ADAPTER = ("lora_r", "lora_alpha", "use_rslora", "lora_target_modules", "lora_task_type")
# By what a user sets, for a refusal.
_FIELDS = {
    "base": "model_name_or_path",
    "data": "dataset_name",
    "kind": "use_peft",
    "start": "start_from",
    "instructions": "instructions",
    "compute_dtype": "what passes are computed in (bf16, fp16)",
    "rows_per_step": "per_device_train_batch_size * gradient_accumulation_steps * processes",
}
_USED = "rows that are used (max_length, skip_invalid, a chat template that prints the date)"


class RunRecord(Section):
    """What a run's checkpoints were made of: digests of base and training data, and what else is not in the weights."""

    format_version: Literal[5] = 5
    base: str
    data: str
    kind: ModuleKind
    start: str | None = None  # digest of the fine-tuned model that it started from
    instructions: Placement
    compute_dtype: DType  # of the passes; left to the machine, another one may choose another
    used: str  # number and digest of the conversations that are trained: not always all of the data
    rows_per_step: int  # of the optimiser, over all processes; a checkpoint's position is in such steps
    order: dict[str, Any]  # the fields, with their values, that decide which rows a batch holds
    adapter: dict[str, Any]  # the fields that decide what an adapter's weights mean
    restored: dict[str, Any]  # the fields that the state of optimiser and schedule brings back


def record_of(
    config: TrainConfig, arguments: SFTConfig, data: LoadedData, *, base: str, start: str | None
) -> RunRecord:
    """The record of a run on `data`, with digests of the base and of what it starts from."""
    return RunRecord(
        base=base,
        data=data.digest,
        kind="lora" if config.use_peft else "full",
        start=start,
        instructions=config.instructions,
        compute_dtype=config.compute_dtype,
        used=_used(data.examples),
        rows_per_step=rows_per_batch(arguments) * arguments.gradient_accumulation_steps,
        order=_order(config, arguments),
        adapter=_adapter(config),
        restored=_restored(arguments),
    )


def rows_per_batch(arguments: SFTConfig) -> int:
    """Of all processes. A batch is a process's own, unless it is split among them."""
    batches: Any = arguments.accelerator_config  # an AcceleratorConfig by now, whatever was given
    return arguments.train_batch_size * (1 if batches.split_batches else arguments.world_size)


def require_same_run(checkpoint: Path, record: RunRecord) -> None:
    """Makes sure that the checkpoint was made of what the run has now.

    Raises:
        UserError: it was not, or the record that would say so is missing or cannot be read.
    """
    before = _read(checkpoint)
    then, now = (
        {field: getattr(made, part) for part, field in _FIELDS.items()} | made.order | made.adapter | made.restored
        for made in (before, record)
    )
    # Where only one has a field, another that both have says why.
    differing = [field for field in now if field in then and then[field] != now[field]]
    lines = [f"\n  {field}: was {then[field]}, is {now[field]}" for field in differing]
    if not lines and before.used != record.used:  # else the others are why
        lines = [f"\n  {_USED}: was {before.used}, is {record.used}"]
    if lines:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} was made with other settings; put them back, or {START_AGAIN}"
            f"{''.join(lines)}"
        )


def _read(checkpoint: Path) -> RunRecord:
    file = checkpoint.parent / RECORD_NAME
    try:
        content = json.loads(file.read_text())
        version = content.get("format_version") if isinstance(content, dict) else None
        ours = RunRecord.model_fields["format_version"].default
        if isinstance(version, int) and version != ours:
            raise UserError(
                f"resume_from_checkpoint: {file} is of another version of PrefillShare: its format_version is "
                f"{version}, not {ours}, so it does not say all that has to be the same; {START_AGAIN}"
            )
        return RunRecord.model_validate(content)
    except FileNotFoundError:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint.parent} has no {RECORD_NAME}, so nothing says which base and data "
            f"{checkpoint.name} was made with; {START_AGAIN}"
        ) from None
    except (OSError, ValueError) as error:  # not text, not JSON, or not such a record
        raise UserError(f"resume_from_checkpoint: cannot use {file}: {error}; {START_AGAIN}") from None


def _used(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        numbers = [len(example.ids), len(example.spans), *example.ids, *chain.from_iterable(example.spans)]
        digest.update(array("q", numbers).tobytes())
    return f"{len(examples)} conversations, sha256:{digest.hexdigest()}"


def _order(config: TrainConfig, arguments: SFTConfig) -> dict[str, Any]:
    """What decides which rows a batch holds. `max_length` does only where rows are packed to it."""
    fields = [*_ORDER, "max_length"] if config.get("packing") else [*_ORDER]
    # Of the same number of rows in a step, how they are divided decides how long an epoch is where its end is dropped,
    # and which rows come together where a sampler groups them.
    if arguments.dataloader_drop_last or arguments.train_sampling_strategy not in ("random", "sequential"):
        fields += ["per_device_train_batch_size", "gradient_accumulation_steps"]
    sampling = {f"accelerator_config.{name}": getattr(arguments.accelerator_config, name) for name in _SAMPLING}
    return {field: config.get(field) for field in fields} | sampling


def _adapter(config: TrainConfig) -> dict[str, Any]:
    """One to start from brings its own, which the digest of it covers."""
    if not config.use_peft or config.start_from:
        return {}
    fields = {field: config.get(field) for field in _ADAPTER}
    return fields | {"lora_target_modules": sorted(fields["lora_target_modules"] or ())}  # none: PEFT's own choice


def _restored(arguments: SFTConfig) -> dict[str, Any]:
    """As Transformers has read them: kwargs may be JSON text, and kinds are its enumerations."""
    values: dict[str, Any] = {field: getattr(arguments, field) for field in _RESTORED}
    return {field: value.value if isinstance(value, Enum) else value for field, value in values.items()}
