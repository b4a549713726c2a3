"""The deployment file: one frozen tree, validated at load.

Errors name the field by its path in the YAML, the value that was found and what would be accepted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from prefillshare.engine_args import EngineArgs
from prefillshare.errors import UserError
from prefillshare.fields import Count, ModelName, Port, RelativePath, Section
from prefillshare.router_config import RouterConfig
from prefillshare.yaml_files import Location, describe_validation_error, read_yaml

Parser = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Parsers(NamedTuple):
    """What vLLM reads answers by; None: answers are plain text."""

    tool_call_parser: str | None
    reasoning_parser: str | None


class BaseConfig(Section):
    """The frozen model that prefills for everyone. `name` defaults to its folder's name.

    The parsers, by vLLM's names, are those of its modules which name none: they read the module's answers.
    """

    path: RelativePath
    name: ModelName | None = None
    prefill_workers: Count = 1
    tool_call_parser: Parser | None = None
    reasoning_parser: Parser | None = None

    @property
    def served_name(self) -> str:
        return self.name or self.path.resolve().name


class ModuleConfig(Section):
    """A decode module and the size of its decode pool. Clients call it by `name`.

    `base` is the name of the base it was trained on, and needed when there are several. LoRA modules of one base that
    name the same `pool` are hosted by the same decode workers. Decode workers that share a `device`, a GPU or whatever
    the name stands for, take turns on it. A parser that is null, rather than left out, is none.
    """

    name: ModelName
    path: RelativePath
    base: str | None = None
    pool: ModelName | None = None
    decode_workers: Count = 1
    device: ModelName | None = None
    tool_call_parser: Parser | None = None
    reasoning_parser: Parser | None = None

    @model_validator(mode="after")
    def _one_worker_on_a_device(self) -> Self:
        if self.device is not None and self.decode_workers > 1:
            raise ValueError(
                f"device: {self.decode_workers} decode workers of {self.name!r} on {self.device!r} would only take "
                "memory from each other; leave out decode_workers, or device"
            )
        return self


@dataclass(frozen=True, slots=True)
class DecodePool:
    """The modules that the same decode workers host; without `pool` a module has workers to itself, under its name."""

    name: str
    modules: tuple[ModuleConfig, ...]

    @property
    def workers(self) -> int:
        return self.modules[0].decode_workers


class WorkerConfig(Section):
    """What all vLLM workers have in common."""

    host: str = "127.0.0.1"
    first_port: Port = 8100
    first_side_channel_port: Port = 5600
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    block_size: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    kv_cache_gib: Count = 1
    max_model_len: Count = 4096
    max_num_seqs: Count = 16
    # How long a prefill worker keeps a finished prompt's blocks. A decode worker that has not pulled them by then, for
    # want of room, refuses the call. At least 6: vLLM renews leases every lease // 6 seconds, in whole seconds.
    kv_lease_s: Annotated[int, Field(ge=6)] = 30
    # How long a decode worker waits for a prefill worker's KV, first handshake included, before it refuses the call.
    pull_timeout_s: Annotated[float, Field(gt=0)] = 8.0
    cores: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    startup_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    engine_args: EngineArgs = ()


class Deployment(Section):
    """The whole deployment file. `base: {...}` in it is short for `bases: [{...}]`."""

    bases: tuple[BaseConfig, ...]
    modules: Annotated[tuple[ModuleConfig, ...], Field(min_length=1)]
    workers: WorkerConfig = WorkerConfig()
    router: RouterConfig = RouterConfig()
    log_dir: Annotated[RelativePath, Field(validate_default=True)] = Path("logs")  # beside the file

    def base_of(self, module: ModuleConfig) -> BaseConfig:
        """The base that prefills for the module."""
        if module.base is None:
            return self.bases[0]
        return next(base for base in self.bases if base.served_name == module.base)

    def parsers_of(self, module: ModuleConfig) -> Parsers:
        """Those that read the module's answers: its own, else its base's."""
        base = self.base_of(module)

        return Parsers(
            *(getattr(module if field in module.model_fields_set else base, field) for field in Parsers._fields)
        )

    def decode_pools(self) -> tuple[DecodePool, ...]:
        """Every module in exactly one pool; pools in the order of their first modules."""
        pools: dict[str, list[ModuleConfig]] = {}
        for module in self.modules:
            pools.setdefault(module.pool or module.name, []).append(module)
        return tuple(DecodePool(name, tuple(modules)) for name, modules in pools.items())

    @model_validator(mode="before")
    @classmethod
    def _one_base_may_be_given_in_short(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        if "base" in content and "bases" in content:
            raise ValueError("`base` and `bases` exclude each other: put all bases into the list `bases`")
        if "base" not in content and "bases" not in content:
            raise ValueError("no base: give `base: {path: ...}`, or for several a list `bases`")
        if "bases" in content:
            return content
        return {"bases": (content["base"],)} | {key: value for key, value in content.items() if key != "base"}

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        taken: set[str] = set()
        for name in (*(base.served_name for base in self.bases), *(module.name for module in self.modules)):
            if name in taken:
                raise ValueError(f"the model name {name!r} is used twice; give every base and module its own name")
            taken.add(name)
        for module in self.modules:
            if module.pool in taken:
                raise ValueError(f"the pool {module.pool!r} is called like a model; give it a name of its own")
        return self

    @model_validator(mode="after")
    def _every_module_has_one_base_and_every_base_a_module(self) -> Self:
        names = [base.served_name for base in self.bases]
        if not names:  # min_length would also complain of a list whose every base has a mistake
            raise ValueError("bases: name at least 1 base")
        for index, module in enumerate(self.modules):
            if module.base is None and len(names) > 1:
                known = " or ".join(f"`base: {name}`" for name in names)
                raise ValueError(f"modules.{index}.base: {module.name!r} must say which base it belongs to: {known}")
            if module.base is not None and module.base not in names:
                known = ", ".join(names)
                raise ValueError(f"modules.{index}.base: there is no base {module.base!r}; there is {known}")
        used = {self.base_of(module).served_name for module in self.modules}
        for index, name in enumerate(names):
            if name not in used:
                raise ValueError(f"bases.{index}: no module belongs to the base {name!r}; give it one or leave it out")
        return self

    @model_validator(mode="after")
    def _a_probe_outlasts_a_pull(self) -> Self:
        token_s, pull_s = self.router.health.token_timeout_s, self.workers.pull_timeout_s
        if token_s <= pull_s:
            raise ValueError(
                f"router.health.token_timeout_s: {token_s:g} must be above workers.pull_timeout_s, {pull_s:g}: a "
                "decode worker that is asked for a token would be found down for a prefill worker that does not answer "
                "its pull; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _modules_of_a_pool_agree(self) -> Self:
        for pool in self.decode_pools():
            bases = {module.name: self.base_of(module).served_name for module in pool.modules}
            if len(set(bases.values())) > 1:
                raise ValueError(
                    f"the pool {pool.name!r} has modules of different bases ({_pairs(bases)}), but its workers run one "
                    "base; make a pool for each base"
                )
            for field in ("decode_workers", "device", *Parsers._fields):
                found = {
                    module.name: getattr(self.parsers_of(module) if field in Parsers._fields else module, field)
                    for module in pool.modules
                }
                if len(set(found.values())) > 1:
                    raise ValueError(
                        f"the modules of the pool {pool.name!r} share its workers and must agree on {field}, "
                        f"found {_pairs(found)}; give all of them the same"
                    )
        return self


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def load_deployment(path: Path) -> Deployment:
    """Reads and validates a deployment file; relative paths in it start at its folder.

    Raises:
        UserError: unreadable file, broken YAML, or fields that are unknown, missing or out of range.
    """
    content = read_yaml(path)
    try:
        return Deployment.model_validate(content, context={"folder": path.resolve().parent})
    except ValidationError as error:
        as_written = _in_short if "base" in content else None
        text = describe_validation_error(path, error, is_secret=_may_hold_a_key, as_written=as_written)
        raise UserError(text) from None


def _in_short(field: Location) -> Location:
    """Where it is in a file that has `base` for a list of one."""
    return ("base", *field[2:]) if field[:2] == ("bases", 0) else field


def _may_hold_a_key(field: Location) -> bool:
    keys = (("router", "keys"), ("router", "keys_file"), ("workers", "engine_args"))
    return field == ("router",) or field[:2] in keys
