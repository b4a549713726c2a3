"""Answers of local weights: base, full fine-tuning and decode module, on whatever share of base KV."""

import hashlib
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from prefillshare.errors import UserError
from prefillshare.evaluation.answers import Answer
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.items import Item
from prefillshare.evaluation.mixed import generate_mixed
from prefillshare.evaluation.systems import Measurement, Role
from prefillshare.hardware import resolve_dtype
from prefillshare.identity import compute_identity, require_no_adapter
from prefillshare.instructions import Placement, place_instructions
from prefillshare.module import MANIFEST_NAME, load_module, verify_module
from prefillshare.training.chat import prints_date
from prefillshare.training.conversation import render_prompt
from prefillshare.training.models import require_proven
from prefillshare.training.reference import generate_batch, load_base, load_decode
from prefillshare.training.tokens import other_tokens

# What two checkpoints have to have in common for one to read the other's KV and tokens.
_GEOMETRY = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")


Model = TypeVar("Model", bound=torch.nn.Module)


class _Limits(TypedDict):
    max_new_tokens: int
    eos_token_ids: set[int]


def compute_device() -> torch.device:
    """Where answers are computed: the machine's accelerator (torch's current one), else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


class LocalAnswers:
    """The weights that a config names. Everything is checked when it is made; weights are loaded when they answer.

    `weights` are digests by role. At most the base and one decode model are loaded at a time, on `compute_device()`.
    With `tell`, a chat template that prints the date is named on stderr, and another that a checkpoint has learned.

    Raises:
        UserError: a folder that is not what its field says, a base of an architecture that is not proven, a module or
            checkpoint of another base, a prompt that the base's chat template refuses, or one that leaves no room for
            an answer.
    """

    def __init__(self, config: EvaluateConfig, items: list[Item], *, tell: bool = False) -> None:
        assert config.model_name_or_path is not None
        transformers_logging.disable_progress_bar()  # of the loading of weights: the evaluation has its own
        self._config, self._base_path = config, config.model_name_or_path
        identity = compute_identity(self._base_path)
        require_proven(self._base_path)
        self._placement: Placement = "in_place"
        decoding: dict[Role, Path] = {"base": self._base_path}
        if config.module is not None:
            module = load_module(config.module)
            verify_module(module, self._base_path)
            self._placement = module.manifest.instructions  # all systems get the prompts that the module was trained on
            decoding["module"] = config.module if module.kind == "full" else self._base_path
        if config.full_fine_tuning is not None:
            _require_checkpoint_of(self._base_path, config.full_fine_tuning)
            other = other_tokens("full_fine_tuning", self._base_path, config.full_fine_tuning)
            if other and tell:
                print(other, file=sys.stderr)
            decoding["full"] = config.full_fine_tuning
        self._tokenizer = AutoTokenizer.from_pretrained(self._base_path)
        self._ends = {role: self._end_tokens(folder) for role, folder in decoding.items()}
        rendered = [item.template_kwargs for item in items if not isinstance(item.prompt, str)]  # texts are not
        told = all("date_string" in kwargs for kwargs in rendered)
        dated = prints_date(self._tokenizer, told=told) if rendered else None
        self._day = {"day": date.today().isoformat()} if dated else {}  # taken before the prompts are made
        if dated and tell:
            print(f"model_name_or_path: {self._base_path}: {dated}", file=sys.stderr)
        self._prompts = {item.line: self._tokenise(item) for item in items}
        self._require_room()
        paths: dict[Role, Path | None] = {"module": config.module, "full": config.full_fine_tuning}
        self.weights = {role: _digest(path) for role, path in paths.items() if path is not None}
        self.weights["base"] = identity.digest
        self._loaded: dict[Role, PreTrainedModel | PeftModel] = {}

    @property
    def dtype(self) -> str:
        return resolve_dtype(self._config.dtype, on_gpu=compute_device().type != "cpu")

    def depends_on(self, measurement: Measurement) -> dict[str, Any]:
        """What decides the answers, beside data and max_new_tokens. Kept answers to anything else are not used."""
        # Prompts follow from the data, the base (tokenizer and chat template are part of its identity), the placement
        # and, with some chat templates, the day. Not a digest of them: it would change with `items`, so that no kept
        # answer could be used again.
        return {
            "base": self.weights["base"],
            "instructions": self._placement,
            "decode": self.weights[measurement.decode],
            "share": measurement.share,
            "dtype": self.dtype,
            "device": compute_device().type,
            "ends": sorted(self._ends[measurement.decode]),
            **self._day,
        }

    def answers(self, measurement: Measurement, items: list[Item]) -> Iterator[Answer]:
        """Greedy answers, in the order of the items."""
        base, decode = self._base(), self._decode(measurement.decode)
        size, known = self._config.batch_size, None
        ends = self._ends[measurement.decode]
        limits = _Limits(max_new_tokens=self._config.max_new_tokens, eos_token_ids=ends)
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            prompts, started = [self._prompts[item.line] for item in batch], time.monotonic()
            if measurement.share in (0, 1):  # one model prefills, so that what prompts share is computed once
                prefill = base if measurement.share else decode
                outputs, known = generate_batch(prefill, decode, prompts, known=known, **limits)
            else:
                outputs = generate_mixed(base, decode, prompts, share=measurement.share, **limits)
            seconds = (time.monotonic() - started) / len(batch)
            for item, tokens in zip(batch, outputs, strict=True):
                text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
                yield Answer(item.line, text, round(seconds, 4), cut_off=tokens[-1] not in ends)

    def _base(self) -> PreTrainedModel:
        if "base" not in self._loaded:
            self._loaded["base"] = self._load_checkpoint(self._base_path)
        base = self._loaded["base"]
        assert isinstance(base, PreTrainedModel)
        return base

    def _decode(self, role: Role) -> PreTrainedModel | PeftModel:
        if role not in self._loaded:
            self._loaded = {"base": self._base()}
            if role == "module":
                assert self._config.module is not None
                module, dtype = load_module(self._config.module), getattr(torch, self.dtype)
                self._loaded[role] = _placed(load_decode(module, self._base_path, dtype=dtype))
            else:
                assert self._config.full_fine_tuning is not None
                self._loaded[role] = self._load_checkpoint(self._config.full_fine_tuning)
        return self._loaded[role]

    def _load_checkpoint(self, folder: Path) -> PreTrainedModel:
        return _placed(load_base(folder, dtype=getattr(torch, self.dtype)))

    def _tokenise(self, item: Item) -> list[int]:
        if isinstance(item.prompt, str):
            ids: list[int] = self._tokenizer(item.prompt)["input_ids"]
            return ids
        try:
            messages = place_instructions(item.prompt, self._placement)
            return render_prompt(messages, self._tokenizer, item.tools, item.template_kwargs)
        except ValueError as error:
            raise UserError(f"{self._config.dataset_name}, line {item.line}: {error}") from None

    def _end_tokens(self, checkpoint: Path) -> set[int]:
        """The tokens at which a server of the checkpoint ends an answer: the base's tokenizer's, and its own."""
        try:
            configured = GenerationConfig.from_pretrained(checkpoint).eos_token_id
        except OSError:  # no such file: vLLM then goes by config.json
            configured = GenerationConfig.from_model_config(AutoConfig.from_pretrained(checkpoint)).eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return {token for token in (*ends, self._tokenizer.eos_token_id) if token is not None}

    def _require_room(self) -> None:
        limit = getattr(AutoConfig.from_pretrained(self._base_path), "max_position_embeddings", None)
        for line, prompt in self._prompts.items():
            needed = len(prompt) + self._config.max_new_tokens
            if limit is not None and needed > limit:
                raise UserError(
                    f"{self._config.dataset_name}, line {line}: {len(prompt)} tokens of prompt and max_new_tokens of "
                    f"{self._config.max_new_tokens} are more than the base's {limit} positions; lower max_new_tokens "
                    "or remove the row"
                )


def _placed(model: Model) -> Model:
    model.to(compute_device())
    return model


def _digest(folder: Path) -> str:
    """What the folder's weights and their config are now."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json", folder / "adapter_config.json"]):
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return "sha256:" + digest.hexdigest()


def _require_checkpoint_of(base: Path, folder: Path) -> None:
    if (folder / MANIFEST_NAME).is_file():
        raise UserError(f"full_fine_tuning: {folder} is a decode module; name it in `module`")
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"full_fine_tuning: {folder} has no config.json or no model*.safetensors; give the folder of a "
            "fine-tuned Hugging Face checkpoint (merge an adapter first)"
        )
    require_no_adapter(folder, "full_fine_tuning")
    ours, theirs = (AutoConfig.from_pretrained(path) for path in (base, folder))
    for name in _GEOMETRY:
        if getattr(ours, name, None) != getattr(theirs, name, None):
            raise UserError(
                f"full_fine_tuning: {folder} has {name} {getattr(theirs, name, None)!r} but the base has "
                f"{getattr(ours, name, None)!r}, so it is not a fine-tuned copy of it; name another checkpoint"
            )
