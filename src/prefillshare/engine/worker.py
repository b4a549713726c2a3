"""The workers of a deployment: what each one is, where it listens and what it runs on. Plans them; starts nothing."""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from prefillshare.config import Deployment, ModuleConfig, Parsers
from prefillshare.engine.handoff import HANDOFF_KEY_VARIABLE
from prefillshare.engine.worker_key import WORKER_KEY_VARIABLE
from prefillshare.errors import UserError
from prefillshare.hardware import resolve_dtype
from prefillshare.identity import compute_identity
from prefillshare.instructions import Placement
from prefillshare.module import DecodeModule, load_module
from prefillshare.proven import unproven

NO_PARSERS = Parsers(None, None)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a worker serves under one name. `instructions` is where the router has prompts carry the role's."""

    name: str  # what goes into a request's `model`
    adapter: Path | None = None  # runs on top of the worker's checkpoint; None: it is that checkpoint
    instructions: Placement = "in_place"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One vLLM worker: everything that its command line and environment follow from. Paths are absolute."""

    name: str
    role: Literal["prefill", "decode"]
    model: Path  # the checkpoint: the base's for prefill and under LoRA adapters
    models: tuple[ServedModel, ...]  # the checkpoint itself, or one or more adapters on it
    base: Path  # tokenizer and chat template come from it on every worker
    base_identity: str  # prefill: of the base; decode: what the modules' manifests name
    host: str
    port: int
    side_channel_port: int  # where decode workers ask a prefill worker how to read its memory
    core: int | None
    dtype: str
    block_size: int  # tokens
    kv_cache_gib: int
    max_model_len: int  # tokens
    max_num_seqs: int
    engine_args: tuple[str, ...]
    handoff_key: str = field(repr=False)  # the deployment's secret for the seal on its handoffs
    worker_key: str = field(repr=False)  # the secret without which a worker serves nobody
    kv_lease_s: int = 30  # how long a prefill worker keeps the blocks of a prompt for a decode worker
    pull_timeout_s: float = 8.0  # how long a decode worker waits for the prefill worker's KV
    parsers: Parsers = NO_PARSERS  # decode: by what it reads its modules' answers
    device: str | None = None  # that it computes on, by a name which is the same for workers that share it
    gives_way: bool = False  # to the prefill worker on its core

    @property
    def served_names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.models)

    @property
    def adapters(self) -> dict[str, Path]:
        """LoRA adapters by the name that they are served under."""
        return {model.name: model.adapter for model in self.models if model.adapter is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What tells the workers of a deployment apart, before ports and cores are dealt out."""

    name: str
    role: Literal["prefill", "decode"]
    model: Path
    models: tuple[ServedModel, ...]
    base: Path
    base_identity: str
    parsers: Parsers = NO_PARSERS
    device: str | None = None


def plan_workers(deployment: Deployment) -> list[WorkerSpec]:
    """The workers of a deployment: prefill workers first, ports counted up, cores dealt out in turn.

    Reads the bases' identities and the modules' manifests but does not compare them with each other. The workers share
    the secrets in PREFILLSHARE_HANDOFF_KEY and VLLM_API_KEY, or new ones.

    Raises:
        UserError: a base is not a checkpoint or has attention windows that are not proven to be served right, a module
            has no valid manifest, or a pool has modules that cannot run in one worker.
    """
    shared = deployment.workers
    key = os.environ.get(HANDOFF_KEY_VARIABLE) or secrets.token_hex(32)
    worker_key = os.environ.get(WORKER_KEY_VARIABLE) or secrets.token_hex(32)
    parts = [*_prefill_parts(deployment), *_decode_parts(deployment)]
    cores = [shared.cores[place % len(shared.cores)] if shared.cores else None for place in range(len(parts))]
    planned = [
        WorkerSpec(
            name=part.name,
            role=part.role,
            model=part.model,
            models=part.models,
            base=part.base,
            base_identity=part.base_identity,
            host=shared.host,
            port=shared.first_port + place,
            side_channel_port=shared.first_side_channel_port + place,
            core=core,
            dtype=resolve_dtype(shared.dtype),
            block_size=shared.block_size,
            kv_cache_gib=shared.kv_cache_gib,
            max_model_len=shared.max_model_len,
            max_num_seqs=shared.max_num_seqs,
            engine_args=tuple(shared.engine_args),
            handoff_key=key,
            worker_key=worker_key,
            kv_lease_s=shared.kv_lease_s,
            pull_timeout_s=shared.pull_timeout_s,
            parsers=part.parsers,
            device=part.device or device_of_core(core),
        )
        for place, (part, core) in enumerate(zip(parts, cores, strict=True))
    ]
    return giving_way(planned)


def giving_way(specs: Sequence[WorkerSpec]) -> list[WorkerSpec]:
    """Has decode workers that share a core with a prefill worker give way to it: calls of all models wait for that."""
    cores = {spec.core for spec in specs if spec.role == "prefill"} - {None}
    return [replace(spec, gives_way=spec.role == "decode" and spec.core in cores) for spec in specs]


def device_of_core(core: int | None) -> str | None:
    """What a core is called where workers are told apart by their devices."""
    return None if core is None else f"core {core}"


def on_other_ports(spec: WorkerSpec, port: int | None, side_channel_port: int | None) -> WorkerSpec:
    """One more worker like `spec` beside it. Raises UserError when only one of its ports differs."""
    if (port is None) != (side_channel_port is None):
        raise UserError(
            f"worker: beside {spec.name} another one needs both ports of its own: --port and --side-channel-port"
        )
    if port is None or side_channel_port is None:
        return spec
    return replace(spec, port=port, side_channel_port=side_channel_port)


def require_adapter(config: ModuleConfig, module: DecodeModule) -> None:
    """Raises UserError for a module that names a pool but is a whole checkpoint, which shares no worker."""
    if config.pool is not None and module.kind != "lora":
        raise UserError(
            f"module {config.name!r} is a {module.kind} module and cannot join the pool {config.pool!r}: its weights "
            "fill a worker of their own; leave out `pool`, or train it with use_peft: true"
        )


def _prefill_parts(deployment: Deployment) -> Iterator[_Part]:
    for base in deployment.bases:
        path = base.path.resolve()
        identity = compute_identity(path).digest
        # Here too, not in `check` alone: whoever starts workers one by one may never call that.
        if why := unproven(json.loads((path / "config.json").read_text())):
            raise UserError(f"base {base.served_name!r} at {path}: {why}")
        pool = "prefill" if len(deployment.bases) == 1 else f"prefill-{_in_file_names(base.served_name)}"
        for number in range(base.prefill_workers):
            yield _Part(
                name=f"{pool}-{number}",
                role="prefill",
                model=path,
                models=(ServedModel(base.served_name),),
                base=path,
                base_identity=identity,
            )


def _decode_parts(deployment: Deployment) -> Iterator[_Part]:
    for pool in deployment.decode_pools():
        base = deployment.base_of(pool.modules[0]).path.resolve()
        loaded = [load_module(config.path) for config in pool.modules]
        for config, module in zip(pool.modules, loaded, strict=True):
            require_adapter(config, module)
        for number in range(pool.workers):
            yield _Part(
                name=f"decode-{_in_file_names(pool.name)}-{number}",
                role="decode",
                model=base if loaded[0].kind == "lora" else loaded[0].path,
                models=tuple(map(_served_model, pool.modules, loaded)),
                base=base,
                base_identity=_common_identity(pool.name, loaded),
                parsers=deployment.parsers_of(pool.modules[0]),
                device=pool.modules[0].device,
            )


def _served_model(config: ModuleConfig, module: DecodeModule) -> ServedModel:
    return ServedModel(config.name, module.path if module.kind == "lora" else None, module.manifest.instructions)


def _common_identity(pool: str, modules: list[DecodeModule]) -> str:
    """The base that all of the pool's modules were trained on: a worker takes the KV of one."""
    identities = {module.manifest.base.identity.digest for module in modules}
    if len(identities) > 1:
        found = ", ".join(f"{module.path}: {module.manifest.base.identity}" for module in modules)
        raise UserError(
            f"the modules of the pool {pool!r} were trained on different bases, by their manifests ({found}); "
            "make a pool for each base"
        )
    return identities.pop()


def _in_file_names(name: str) -> str:
    """Names of workers are also names of log files. No model's name holds a tilde, so none becomes another's."""
    return name.replace("/", "~")


def require_shared_secrets() -> None:
    """Makes sure that workers which are planned one by one, each by a process of its own, have the same secrets.

    Raises:
        UserError: they would each draw new ones, and refuse each other's handoffs.
    """
    missing = [name for name in (HANDOFF_KEY_VARIABLE, WORKER_KEY_VARIABLE) if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be set: workers that are started one by one share these secrets with each "
            "other and with the router. Give all of them the same, e.g. "
            + "; ".join(f"export {name}=$(openssl rand -hex 32)" for name in missing)
        )
