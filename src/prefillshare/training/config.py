"""What `prefillshare train` reads: one frozen config, with the option names of TRL and Transformers."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefillshare.config import ModelName, RelativePath, describe_validation_error, read_yaml
from prefillshare.errors import UserError

_PATHS = ("model_name_or_path", "dataset_name", "output_dir")
# The schedules of Transformers that need no further settings.
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]
Positive = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """A training run. `model_name_or_path` is the base's folder, `dataset_name` a JSONL file (see conversation.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name_or_path: RelativePath
    dataset_name: RelativePath
    output_dir: RelativePath
    name: ModelName | None = None
    overwrite_output_dir: bool = False

    max_steps: int = -1
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    per_device_train_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    lr_scheduler_type: Scheduler = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    max_length: Positive | None = None
    train_sampling_strategy: Literal["random", "sequential"] = "random"
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    use_peft: bool = False
    lora_r: Positive = 16
    lora_alpha: Positive = 32
    lora_target_modules: str | tuple[str, ...] = "all-linear"

    @property
    def module_name(self) -> str:
        return self.name or self.output_dir.resolve().name

    @model_validator(mode="after")
    def _steps_are_given(self) -> Self:
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError("max_steps must be positive, or -1 to train for num_train_epochs")
        return self

    def data_digest(self) -> str:
        """What the data file holds now, for the manifest."""
        return "sha256:" + hashlib.sha256(self.dataset_name.read_bytes()).hexdigest()

    def hyper_parameters(self) -> dict[str, Any]:
        """Everything that is not a path or a name, for the manifest."""
        left_out = {*_PATHS, "name", "overwrite_output_dir"}
        return self.model_dump(mode="json", exclude=left_out)


def load_train_config(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> TrainConfig:
    """Reads a YAML file; `key=value` overrides replace its fields.

    Relative paths in the file start at its folder, those in overrides at the working directory.

    Raises:
        UserError: unreadable file, an override without `=`, or fields that are unknown, missing or out of range.
    """
    content = read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}: expected key=value, e.g. learning_rate=1e-4")
        content[key] = str(Path(text).absolute()) if key in _PATHS else _parse(override, text)
    try:
        return TrainConfig.model_validate(content, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise UserError(describe_validation_error(path, error)) from None


def _parse(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
