"""What a decode module's weights are before training: the base's, or those of a model that was fine-tuned from it.

`start_from` turns a fine-tuned checkpoint or adapter that somebody has into a decode module: it has learned its task on
its own KV, and goes on learning on the base's.
"""

import json
import re
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from prefillshare.errors import UserError
from prefillshare.identity import compute_identity, digest_checkpoint, require_no_adapter
from prefillshare.module import MANIFEST_NAME, load_module
from prefillshare.training.config import TrainConfig
from prefillshare.training.models import some_of
from prefillshare.training.refusals import MAX_LORA_RANK

_ADAPTER, _CHECKPOINT = "adapter_config.json", "config.json"
_WEIGHTS = "adapter_model.safetensors"
_OF_BLOCKS = re.compile(r"\.layers\.\d+\..*\.lora_[AB]\.weight$")
# What adapters have that vLLM refuses to serve. With some, the base without the adapter would not be the base any more.
_NOT_SERVED = (
    "use_dora", "modules_to_save", "bias", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora",
    "use_qalora", "trainable_token_indices", "target_parameters",
)  # fmt: skip
_INITIAL = frozenset({"gaussian", "eva", "orthogonal"})  # ways to initialise that leave the base's weights alone
# Fields of a model's config that may differ from the base's: who wrote it, and what generation goes by.
_FREE = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"}
)


def check_start(config: TrainConfig) -> str | None:
    """A digest of what training starts from; None where it is the base.

    Raises:
        UserError: that is not a checkpoint, or with LoRA not an adapter, that a module of this base can start from.
    """
    start = config.start_from
    if start is None:
        return None
    wanted, other = (_ADAPTER, _CHECKPOINT) if config.use_peft else (_CHECKPOINT, _ADAPTER)
    if not (start / wanted).is_file():
        if not (start / other).is_file():
            raise UserError(f"start_from: {start} has no {wanted}; name the folder of a fine-tuned model of the base")
        way = "leave use_peft out, or name an adapter" if config.use_peft else "set use_peft=true, or merge it first"
        raise UserError(f"start_from: {start} is {'a checkpoint' if config.use_peft else 'an adapter'}; {way}")
    weights = sorted(start.glob(_WEIGHTS if config.use_peft else "*.safetensors"))
    if not weights:
        raise UserError(f"start_from: {start} has no *.safetensors weights; save it with save_pretrained()")
    if (start / MANIFEST_NAME).is_file():
        module = load_module(start)
        if module.manifest.base.identity != compute_identity(config.model_name_or_path):
            raise UserError(
                f"start_from: {start} is a decode module of another base than {config.model_name_or_path}: "
                f"{module.manifest.base.name}, {module.manifest.base.identity}"
            )
    if config.use_peft:
        _check_adapter(config, start)
    else:
        require_no_adapter(start, "start_from")
        _check_checkpoint(config.model_name_or_path, start)
    return digest_checkpoint(weights, start / wanted)


def adapted(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The base with the adapter, which goes on being trained.

    Raises:
        UserError: the adapter does not fit the model.
    """
    try:
        whole = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"start_from: {adapter} does not fit the base: {error}") from None
    # PEFT warns of tensors that it has no place for, and leaves those that it does not find as a new adapter's.
    expected = get_peft_model_state_dict(whole, save_embedding_layers=False)
    if differing := _tensors(adapter) ^ expected.keys():
        raise UserError(
            f"start_from: {adapter} does not fit the base: its file and its {_ADAPTER} differ in "
            f"{some_of(differing)}; save it again with PEFT's save_pretrained(), for a model of the base's own class"
        )
    return whole


def _tensors(adapter: Path) -> frozenset[str]:
    file = adapter / _WEIGHTS
    try:
        with safe_open(file, framework="pt") as content:
            return frozenset(content.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"start_from: cannot read {file}: {error}") from None


def _check_adapter(config: TrainConfig, start: Path) -> None:
    try:
        adapter: dict[str, Any] = json.loads((start / _ADAPTER).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"start_from: cannot read {start / _ADAPTER}: {error}") from None
    if adapter.get("peft_type") != "LORA":
        raise UserError(
            f"start_from: {start} is of type {adapter.get('peft_type')!r}; only LoRA adapters can be served"
        )
    for field in _NOT_SERVED:
        if adapter.get(field) and not (field == "bias" and adapter[field] == "none"):
            raise UserError(f"start_from: {start} has {field}, which vLLM does not serve; merge it into the checkpoint")
    ranks = [adapter.get("r"), *(adapter.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) for rank in ranks):
        raise UserError(f"start_from: {start / _ADAPTER} does not name a rank r; save it again with save_pretrained()")
    if max(ranks) > MAX_LORA_RANK:
        raise UserError(
            f"start_from: {start} has rank {max(ranks)}; vLLM serves at most {MAX_LORA_RANK}; merge it into the "
            "checkpoint"
        )
    if others := sorted(name for name in _tensors(start) if not _OF_BLOCKS.search(name)):
        raise UserError(
            f"start_from: {start} has {others[0]}, which vLLM does not serve: only what LoRA adds to the linear layers "
            "of the base's blocks; merge it into the checkpoint"
        )
    initial = adapter.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower() not in _INITIAL:
        raise UserError(
            f"start_from: {start} has init_lora_weights {initial!r}, with which PEFT changes the base's own weights as "
            "it loads the adapter; convert it to an ordinary LoRA adapter (path_initial_model_for_weight_conversion of "
            "PEFT's save_pretrained), or merge it into the checkpoint"
        )
    if told := sorted(key for key in config.trl if key.startswith("lora_") or key == "use_rslora"):
        raise UserError(f"{told[0]}: the adapter that start_from names brings its own; leave {', '.join(told)} out")


def _check_checkpoint(base: Path, start: Path) -> None:
    try:
        ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (base, start))
    except (OSError, ValueError) as error:
        raise UserError(f"start_from: cannot use {start}: {error}") from None
    fields = sorted((ours.keys() | theirs.keys()) - _FREE)
    if differing := [field for field in fields if ours.get(field) != theirs.get(field)]:
        shown = ", ".join(f"{field} is {theirs.get(field)!r}, not {ours.get(field)!r}" for field in differing)
        raise UserError(f"start_from: {start} was not fine-tuned from {base}: its {shown}")
