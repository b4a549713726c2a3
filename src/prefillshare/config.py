"""The deployment file: one frozen tree, validated at load.

Errors name the field by its path in the YAML, the value that was found and what would be accepted.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from prefillshare.errors import UserError


def _from_yaml_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    path = path.expanduser()
    return path if folder is None or path.is_absolute() else Path(folder) / path


RelativePath = Annotated[Path, AfterValidator(_from_yaml_folder)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Count = Annotated[int, Field(ge=1)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=128)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseConfig(_Section):
    """The frozen model that prefills for everyone. `name` defaults to its folder's name."""

    path: RelativePath
    name: ModelName | None = None
    prefill_workers: Count = 1

    @property
    def served_name(self) -> str:
        return self.name or self.path.resolve().name


class ModuleConfig(_Section):
    """A decode module and the size of its decode pool. Clients call it by `name`."""

    name: ModelName
    path: RelativePath
    decode_workers: Count = 1


class WorkerConfig(_Section):
    """What all vLLM workers have in common."""

    host: str = "127.0.0.1"
    first_port: Port = 8100
    first_side_channel_port: Port = 5600
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    block_size: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    kv_cache_gib: Count = 1
    max_model_len: Count = 4096
    max_num_seqs: Count = 16
    cores: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    startup_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    engine_args: tuple[str, ...] = ()


class RouterConfig(_Section):
    """Where clients connect, and how long the router waits for workers."""

    host: str = "127.0.0.1"
    port: Port = 8000
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0


class Deployment(_Section):
    """The whole deployment file."""

    base: BaseConfig
    modules: Annotated[tuple[ModuleConfig, ...], Field(min_length=1)]
    workers: WorkerConfig = WorkerConfig()
    router: RouterConfig = RouterConfig()
    log_dir: RelativePath = Path("logs")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        taken = {self.base.served_name}
        for module in self.modules:
            if module.name in taken:
                raise ValueError(f"the model name {module.name!r} is used twice; give every module its own name")
            taken.add(module.name)
        return self


def load_deployment(path: Path) -> Deployment:
    """Reads and validates a deployment file; relative paths in it start at its folder.

    Raises:
        UserError: unreadable file, broken YAML, or fields that are unknown, missing or out of range.
    """
    content = read_yaml(path)
    try:
        return Deployment.model_validate(content, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise UserError(describe_validation_error(path, error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError when it is unreadable or not a mapping."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], *, paths: Collection[str], example: str
) -> dict[str, Any]:
    """The mapping with `key=value` overrides put in; `section.key=value` reaches into a section.

    Args:
        paths: fields whose relative values start at the working directory, not at the file's folder.
        example: an override to show in an error.

    Raises:
        UserError: an override without `=`, with a value that is not YAML, or into something that is no section.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}: expected key=value, e.g. {example}")
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"override {override!r}: {name} is not a section")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
        section[last] = str(Path(text).absolute()) if key in paths and value is not None else value
    return content


def describe_validation_error(path: Path, error: ValidationError) -> str:
    """One line a field: where it is in the file, what is wrong and what was found."""
    lines = [f"{path}: {error.error_count()} problem(s)"]
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "(file)"
        found = "" if problem["type"] == "missing" or not problem["loc"] else f" (found {problem['input']!r})"
        lines.append(f"  {field}: {problem['msg']}{found}")
    return "\n".join(lines)
