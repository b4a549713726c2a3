"""The systems that are compared, each on the same cores, with the same KV memory in total, from the same checkpoint.

- `shared`: one prefill worker for all models, a decode worker for each.
- `shared-lora`: the same with LoRA modules, which one decode worker hosts: it forms one batch of all models' calls.
- `per-model`: disaggregation without sharing. Every model is its own base: it has a prefill worker of its own, which
  runs its weights, and a decode worker. Handoff, connector, router and session affinity are those of `shared`, so that
  sharing alone makes the difference.
- `colocated`: one ordinary vLLM for each model, with prefix caching, called directly: no router stands in its way.
- `colocated-lora`: one ordinary vLLM that hosts all models as LoRA modules, called directly: it too forms one batch of
  all models' calls, and shares no prefill, since adapters are part of what its prefix cache knows a block by.

The models are the base's weights under several names, or adapters that change nothing. Prefill workers share
the prefill cores and decode workers the decode cores, as two kinds of devices would; ordinary vLLMs take turns on all.
The one of `colocated-lora` has them all at once: it prefills and decodes, so it has what a worker of each kind would.
"""

import json
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator

from prefillshare.bench.modules import make_adapter, make_module
from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.engine.worker import WorkerSpec, device_of_core, giving_way, plan_workers
from prefillshare.engine_args import EngineArgs
from prefillshare.errors import UserError
from prefillshare.fields import Count, Port, Section
from prefillshare.router_config import FlowConfig, HealthConfig, RouterConfig

# In the order in which they are shown, which is also that of their colours: a new one goes to the end.
SystemName = Literal["shared", "shared-lora", "per-model", "colocated", "colocated-lora"]
SYSTEMS: tuple[SystemName, ...] = get_args(SystemName)
WITH_ADAPTERS: tuple[SystemName, ...] = ("shared-lora", "colocated-lora")
ORDINARY: tuple[SystemName, ...] = ("colocated", "colocated-lora")  # nothing of PrefillShare handles a call

_BATCHED_TOKENS = 2048  # vLLM's default on CPUs
_PORTS = 32  # that a system may take, of either kind: eight models have sixteen workers
_BASE = "base"
_POOL = "together"
# vLLM's own LoRA layers copy an adapter for every token, which on a CPU makes prefill and decode several times slower.
# That has nothing to do with what is compared.
_GROUPED_LORA = ("--worker-extension-cls", "prefillshare.engine.grouped_lora.GroupedLora")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Every call is served, however long it waits: a system that refused calls would look fast.
FLOW = FlowConfig(queue_share=1e6, queue_calls=1_000_000, max_wait_s=86400.0)
Core = Annotated[int, Field(ge=0)]


class Machine(Section):
    """What every system gets. KV is in tokens, in total: workers of a kind divide it evenly. `turn_s` and
    `cached_first_s` are of routers (docs/flow.md)."""

    prefill_cores: Annotated[tuple[Core, ...], Field(min_length=1)] = (0,)
    decode_cores: Annotated[tuple[Core, ...], Field(min_length=1)] = (1,)
    prefill_kv_tokens: Count = 49_152
    decode_kv_tokens: Count = 49_152
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    block_size: Annotated[int, Field(ge=32, multiple_of=32)] = 32
    max_model_len: Count = 8192
    max_num_seqs: Count = 16
    turn_s: Annotated[float, Field(ge=0)] = 5.0
    cached_first_s: Annotated[float, Field(ge=0)] = 86400.0
    first_port: Port = 8400
    first_side_channel_port: Port = 5900
    engine_args: EngineArgs = ()

    @field_validator("engine_args")
    @classmethod
    def _require_a_number_of_tokens(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        try:
            _batched_tokens(arguments)
        except ArgumentError as error:
            raise ValueError(f"{error}; the simulator needs the number as it is, 2000 instead of 2k") from None
        return arguments

    def on_other_ports(self, place: int) -> Self:
        """For the system at that place among those that run at the same time."""
        shift = place * _PORTS
        ports = {"first_port": self.first_port, "first_side_channel_port": self.first_side_channel_port}
        return self.model_copy(update={name: port + shift for name, port in ports.items()})

    @property
    def batched_tokens(self) -> int:
        """How many tokens a step of an engine computes at most, by `engine_args`."""
        return _batched_tokens(self.engine_args)

    @property
    def cores(self) -> tuple[int, ...]:
        """Of both kinds, each once."""
        return tuple(dict.fromkeys((*self.prefill_cores, *self.decode_cores)))


def _batched_tokens(engine_args: Sequence[str]) -> int:
    """Raises ArgumentError for what is no whole number, vLLM's own short forms among it."""
    options = ArgumentParser(add_help=False, exit_on_error=False)
    options.add_argument("--max-num-batched-tokens", type=int, default=_BATCHED_TOKENS)
    # As vLLM reads them, which takes underscores for dashes.
    pairs = (argument.partition("=") for argument in engine_args)
    dashed = [name.replace("_", "-") + equals + value for name, equals, value in pairs]
    return int(options.parse_known_args(dashed)[0].max_num_batched_tokens)


def flow_of(machine: Machine) -> FlowConfig:
    return FLOW.model_copy(update={"turn_s": machine.turn_s, "cached_first_s": machine.cached_first_s})


def model_names(count: int) -> tuple[str, ...]:
    return tuple(f"model-{number}" for number in range(count))


def plan(system: SystemName, models: int, base: Path, folder: Path, machine: Machine) -> Deployment:
    """The deployment that the system is, or whose decode workers it stands in for (ordinary vLLMs).

    Writes decode modules into `folder`, as links to the base's files.

    Raises:
        UserError: the base is not a checkpoint.
    """
    names = model_names(models)
    make = make_adapter if system in WITH_ADAPTERS else make_module
    made = {name: make(base, folder / name, name=name, base_name=_BASE) for name in names}
    if system == "per-model":
        bases = tuple(BaseConfig(path=path, name=f"{name}-prefill") for name, path in made.items())
        modules = tuple(ModuleConfig(name=name, path=path, base=f"{name}-prefill") for name, path in made.items())
    else:
        bases = (BaseConfig(path=base, name=_BASE),)
        pool = _POOL if system in WITH_ADAPTERS else None
        modules = tuple(ModuleConfig(name=name, path=path, pool=pool) for name, path in made.items())
    return Deployment(
        bases=bases,
        modules=modules,
        workers=WorkerConfig(
            first_port=machine.first_port + 1,
            first_side_channel_port=machine.first_side_channel_port,
            dtype=machine.dtype,
            block_size=machine.block_size,
            max_model_len=machine.max_model_len,
            max_num_seqs=calls_at_a_time(system, machine),
            engine_args=machine.engine_args,
        ),
        router=RouterConfig(
            port=machine.first_port,
            flow=flow_of(machine),
            # Probes would take part of a system's time. Workers that take turns on a core can have a step of half a
            # minute and a prompt of ten, which is no fault of theirs: taken for stalled, they would lose their calls.
            health=HealthConfig(token_every_s=86400.0, stalled_after_s=86400.0),
            request_timeout_s=86400.0,
        ),
        log_dir=folder / "logs",
    )


def check_room(system: SystemName, models: int, machine: Machine) -> None:
    """What `plan_system_workers` would refuse, before any model is there.

    Raises:
        UserError: a worker's share of the KV memory cannot hold a longest prompt.
    """
    decode_workers = 1 if system in WITH_ADAPTERS else models
    if system in ORDINARY:
        both = machine.prefill_kv_tokens + machine.decode_kv_tokens
        shares = {"prefill_kv_tokens and decode_kv_tokens": (both, decode_workers)}
    else:
        shares = {
            "prefill_kv_tokens": (machine.prefill_kv_tokens, models if system == "per-model" else 1),
            "decode_kv_tokens": (machine.decode_kv_tokens, decode_workers),
        }
    for name, (tokens, workers) in shares.items():
        if tokens // workers < machine.max_model_len:
            raise UserError(
                f"machine: {name}={tokens:,} do not hold one prompt of max_model_len={machine.max_model_len} in each "
                f"of {workers} workers, which {system} has with {models} models; give more, or lower max_model_len"
            )


def plan_system_workers(system: SystemName, machine: Machine, deployment: Deployment) -> list[WorkerSpec]:
    """Every worker of the system as it is to be started: on its core, or with `core` None on all (`engine_cores`), and
    with its share of the KV memory.

    Raises:
        UserError: a worker's share of the KV memory cannot hold a longest prompt.
    """
    specs = plan_workers(deployment)
    if system in ORDINARY:
        own = [replace(spec, name=spec.name.replace("decode-", "plain-")) for spec in specs if spec.role == "decode"]
        kv_tokens = machine.prefill_kv_tokens + machine.decode_kv_tokens
        if system == "colocated-lora":
            return _share_out([_with_grouped_lora(spec) for spec in own], (None,), kv_tokens)
        return _share_out(own, machine.cores, kv_tokens)
    prefill = [spec for spec in specs if spec.role == "prefill"]
    decode = [spec for spec in specs if spec.role == "decode"]
    return giving_way(
        [
            *_share_out(prefill, machine.prefill_cores, machine.prefill_kv_tokens),
            *_share_out(decode, machine.decode_cores, machine.decode_kv_tokens),
        ]
    )


def calls_at_a_time(system: str, machine: Machine) -> int:
    """How many one worker of the system computes at a time, at most: of `colocated-lora` as many as `shared-lora` does
    in its two."""
    return machine.max_num_seqs * (2 if system == "colocated-lora" else 1)


def engine_cores(core: int | None, machine: Machine) -> tuple[int, ...]:
    """Where an engine runs that was planned for this core, with a thread for each."""
    return machine.cores if core is None else (core,)


def kv_blocks(spec: WorkerSpec) -> int:
    """How many blocks of KV a planned worker has."""
    return int(spec.engine_args[spec.engine_args.index("--num-gpu-blocks-override") + 1])


def kv_bytes_per_token(checkpoint: Path, dtype: str) -> int:
    """Keys and values of one token in all layers."""
    config = json.loads((checkpoint / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    values = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * width
    return int(values * _BYTES[dtype])


def _with_grouped_lora(spec: WorkerSpec) -> WorkerSpec:
    return replace(spec, engine_args=(*spec.engine_args, *_GROUPED_LORA))


def _share_out(specs: list[WorkerSpec], cores: tuple[int | None, ...], kv_tokens: int) -> list[WorkerSpec]:
    return [
        _with_kv(replace(spec, core=core, device=device_of_core(core)), kv_tokens // len(specs))
        for spec, core in zip(specs, cycle(cores), strict=False)
    ]


def _with_kv(spec: WorkerSpec, tokens: int) -> WorkerSpec:
    if tokens < spec.max_model_len:
        raise UserError(
            f"machine: {tokens:,} tokens of KV for {spec.name} do not hold one prompt of max_model_len="
            f"{spec.max_model_len}; give more {spec.role}_kv_tokens, or lower max_model_len"
        )
    # One block is vLLM's own; it is never given to a request.
    blocks = tokens // spec.block_size + 1
    gib = -(-blocks * spec.block_size * kv_bytes_per_token(spec.model, spec.dtype) // 2**30)
    arguments = (*spec.engine_args, "--num-gpu-blocks-override", str(blocks))
    return replace(spec, engine_args=arguments, kv_cache_gib=gib)
