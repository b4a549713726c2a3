"""What `prefillshare train` reads: the fields of a `trl sft` YAML, and the few that a decode module needs beside them.

Every field of TRL's SFTConfig, ModelConfig and ScriptArguments is accepted by its name and checked by its type.
Those that cannot work when the prompt's KV is the base's are refused with the reason (`refusals.py`).
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, ScriptArguments, SFTConfig

from prefillshare.errors import UserError
from prefillshare.fields import ModelName, RelativePath, Section
from prefillshare.hardware import DType, resolve_dtype
from prefillshare.instructions import Placement
from prefillshare.training.refusals import ELSEWHERE, refusal
from prefillshare.yaml_files import apply_overrides, describe_validation_error, read_yaml

_PATHS = ("model_name_or_path", "dataset_name", "output_dir", "start_from")
_TRL = (SFTConfig, ModelConfig, ScriptArguments)
# TRL's defaults that would change what users of decode modules expect, and why.
_DEFAULTS: Mapping[str, Any] = {
    "max_length": None,  # TRL cuts rows at 1,024 tokens; a response that lost its prompt's end teaches nonsense
    "lora_target_modules": ["all-linear"],  # PEFT's own default leaves out the MLP
}


class TrainConfig(Section):
    """A training run.

    `model_name_or_path` is the base's folder, `dataset_name` a file or folder of rows (see sources.py) and `output_dir`
    the folder that becomes the decode module. `start_from` is a fine-tuned model of the base whose weights, or whose
    adapter, training begins with. `trl` holds the other fields that were set, by TRL's names.
    """

    model_name_or_path: RelativePath
    dataset_name: RelativePath
    output_dir: RelativePath
    start_from: RelativePath | None = None
    name: ModelName | None = None
    overwrite_output_dir: bool = False
    skip_invalid: bool = False
    instructions: Placement = "in_place"
    trl: Annotated[dict[str, Any], Field(exclude=True)] = {}

    @model_validator(mode="before")
    @classmethod
    def _sort_fields(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if "trl" in given:
            raise ValueError("trl: not a field; write TRL's fields beside the others")
        own, trl = {}, {}
        for key, value in given.items():
            if key in ELSEWHERE:
                raise ValueError(f"{key}: {ELSEWHERE[key]}")
            if key in _trl_fields():
                trl[key] = value
            elif key != "warmup_ratio":
                own[key] = value  # ours, or refused as unknown
        if "warmup_ratio" in given:
            trl["warmup_steps"] = _warmup(given["warmup_ratio"], trl.get("warmup_steps", 0))
        return {**own, "trl": trl}

    @model_validator(mode="after")
    def _trl_fields_are_right(self) -> Self:
        for key, value in self.trl.items():
            try:
                self.trl[key] = _trl_fields()[key].validate_python(_as_on_the_command_line(key, value))
            except ValidationError as error:
                raise ValueError(f"{key}: {error.errors()[0]['msg']} (found {value!r})") from None
            choices = _choices().get(key)
            if choices and self.trl[key] is not None and self.trl[key] not in choices:
                raise ValueError(f"{key}: must be one of {', '.join(choices)} (found {value!r})")
            reason = refusal(key, self.trl[key])
            if reason:
                raise ValueError(f"{key}: {value!r} cannot be used here: {reason}")
        for key in ("max_length", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lora_r"):
            value = self.trl.get(key)
            if value is not None and value < 1 and not (key == "max_steps" and value == -1):
                raise ValueError(f"{key}: must be positive (found {value!r})")
        for key in ("learning_rate", "num_train_epochs"):
            if self.trl.get(key, 1) <= 0:
                raise ValueError(f"{key}: must be greater than 0 (found {self.trl[key]!r})")
        if self.trl.get("bf16") and self.trl.get("fp16"):
            raise ValueError("bf16: true together with fp16: true; passes are computed in one of them, so set one")
        if reason := self._why_not_dtype():
            raise ValueError(reason)
        if self.trl.get("enable_jit_checkpoint") and self.trl.get("save_only_model"):
            raise ValueError(
                "enable_jit_checkpoint: with save_only_model no run could go on from the checkpoint; leave one out"
            )
        return self

    def changed(self, **fields: Any) -> Self:
        """This config with other values for some fields, checked again."""
        own = {key: getattr(self, key) for key in type(self).model_fields if key != "trl"}
        return type(self).model_validate({**own, **self.trl, **fields})

    def get(self, field: str) -> Any:
        """The value of a TRL field that takes effect."""
        if field in self.trl:
            return self.trl[field]
        if field in _DEFAULTS:
            return _DEFAULTS[field]
        return next(f.default for kind in _TRL for f in fields(kind) if f.name == field)

    @property
    def module_name(self) -> str:
        return self.name or self.output_dir.resolve().name

    @property
    def use_peft(self) -> bool:
        return bool(self.get("use_peft"))

    @property
    def compute_dtype(self) -> DType:
        """What passes are computed in: as `bf16` or `fp16` say, else what this machine computes fastest."""
        if passes := self._told_dtype:
            return passes
        # As in TRL, where weights of float32, its default, are trained under bfloat16 like all others.
        return "bfloat16" if self.trl.get("dtype") == "bfloat16" else resolve_dtype("auto")

    @property
    def _told_dtype(self) -> DType | None:
        """What `bf16` and `fp16` say of the passes; None where they leave it open."""
        if self.trl.get("fp16"):
            return "float16"
        if self.trl.get("bf16") is None:
            return None
        return "bfloat16" if self.trl["bf16"] else "float32"

    def _why_not_dtype(self) -> str | None:
        """Why `dtype` cannot be had together with `bf16` and `fp16`, or None.

        In TRL it is what weights are loaded in, and with it what is computed where neither of the two is on.
        """
        dtype, passes = self.trl.get("dtype"), self._told_dtype
        if "dtype" not in self.trl or dtype == "float32":
            return None
        if dtype == "float16":
            fits, way = passes == "float16", "set fp16: true for passes in float16"
        elif dtype == "bfloat16":
            fits, way = passes in ("bfloat16", None), "set bf16: true for passes in bfloat16"
        else:  # the checkpoint's own
            fits, way = passes != "float32", "set bf16: true or fp16: true for passes in one of them"
        if fits:
            return None
        said = f"bf16: {_yaml(self.trl.get('bf16'))} and fp16: {_yaml(self.trl.get('fp16'))}"
        return (
            f"dtype: {_yaml(dtype)} together with {said} is not what it is in TRL: trained weights are float32 here, "
            f"and passes are computed as bf16 and fp16 say; {way}, or leave dtype out"
        )

    def arguments(self) -> SFTConfig:
        """TRL's arguments for the trainer. Packing is done before, and the model is loaded by us.

        Raises:
            UserError: TRL or Transformers refuses a value.
        """
        names = {f.name for f in fields(SFTConfig)} - {"packing", "padding_free", "max_length"}
        # Trainer writes its arguments into every checkpoint. Nothing is pushed, so none needs the token.
        given = {key: value for key, value in self.trl.items() if key in names and not _is_secret(key)}
        dtype = self.compute_dtype
        given |= {"output_dir": str(self.output_dir), "bf16": dtype == "bfloat16", "fp16": dtype == "float16"}
        given["max_length"] = None
        given["report_to"] = given.get("report_to") or "none"  # YAML's null is nothing, too
        given["disable_tqdm"] = True  # there is a bar of our own
        given.setdefault("use_cpu", not torch.accelerator.is_available())
        wanted = given["report_to"]
        for tool in [wanted] if isinstance(wanted, str) else wanted:
            if tool not in ("all", "none", *get_available_reporting_integrations()):
                raise UserError(f"report_to: {tool!r} is not installed; install it, or set report_to to none")
        try:
            return SFTConfig(**given)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise UserError(f"training config: {error}") from None

    def model_arguments(self) -> ModelConfig:
        """TRL's arguments for PEFT."""
        names = {f.name for f in fields(ModelConfig)} - {"model_name_or_path", "dtype"}
        given = {key: self.get(key) for key in names if key in self.trl or key in _DEFAULTS}
        return ModelConfig(**given)

    def hyper_parameters(self) -> dict[str, Any]:
        """Everything that was set and is not a path, a name or a secret, for the manifest."""
        own = {"skip_invalid": self.skip_invalid, "instructions": self.instructions}
        trl = {key: value for key, value in self.trl.items() if not _is_secret(key)}
        return TypeAdapter(dict[str, Any]).dump_python({**trl, **own}, mode="json")


def load_train_config(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> TrainConfig:
    """Reads a YAML file; `key=value` overrides replace its fields.

    Relative paths in the file start at its folder, those in overrides at the working directory.

    Raises:
        UserError: unreadable file, an override without `=`, or fields that are unknown, missing, out of range or
            cannot work on base KV.
    """
    content = apply_overrides(read_yaml(path), overrides, paths=_PATHS, example="learning_rate=1e-4")
    try:
        config = TrainConfig.model_validate(content, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise UserError(describe_validation_error(path, error)) from None
    config.arguments()  # TRL's and Transformers' own checks
    return config


@cache
def _trl_fields() -> dict[str, TypeAdapter[Any]]:
    adapters = {}
    for kind in _TRL:
        hints = get_type_hints(kind)
        for f in fields(kind):
            if f.init and f.name not in ("output_dir", "dataset_name", "model_name_or_path"):
                adapters[f.name] = TypeAdapter(hints[f.name], config=ConfigDict(arbitrary_types_allowed=True))
    return adapters


@cache
def _choices() -> dict[str, list[str]]:
    """What TRL's command line lets one choose from, by field; its dataclasses take anything."""
    return {f.name: list(f.metadata["choices"]) for kind in _TRL for f in fields(kind) if f.metadata.get("choices")}


def _yaml(value: Any) -> str:
    """A value as it is written in YAML, where that is a truth value, a word or nothing."""
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _is_secret(field: str) -> bool:
    """By the rule of Transformers' `to_dict`. Tokens of text change nothing where they are taken (`eos_token`)."""
    return field.endswith("_token")


def _warmup(ratio: Any, steps: Any) -> Any:
    """What `warmup_steps` is, which below 1 is a ratio, from the two fields of Transformers 4: there steps win."""
    number = TypeAdapter(float)
    try:
        ratio = number.validate_python(ratio)
    except ValidationError as error:
        raise ValueError(f"warmup_ratio: {error.errors()[0]['msg']} (found {ratio!r})") from None
    if not 0 <= ratio < 1:
        raise ValueError(f"warmup_ratio: must be at least 0 and below 1 (found {ratio!r})")
    try:
        return steps if number.validate_python(steps) >= 1 else ratio
    except ValidationError:
        return steps  # to be named with the other fields


def _as_on_the_command_line(key: str, value: Any) -> Any:
    """What TRL's own parser makes of a value whose declared type is narrower than what people write in YAML."""
    if isinstance(value, str) and key.startswith("lora_target"):
        return [value]
    if isinstance(value, bool) and key == "resume_from_checkpoint":
        return "true" if value else None
    return value
