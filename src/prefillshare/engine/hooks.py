"""Where an engine reaches behind vLLM's public interfaces, each place with a test that notices a change.

What is not here goes through the interface of a KV connector (`connector.py`), of a prefix-cache manager that vLLM
hands to connectors (`provenance.py`), of connector statistics (`stats.py`) or of `--middleware` (`refusals.py`).
"""

import copy
import hashlib
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import NixlBaseConnectorScheduler
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker import NixlBaseConnectorWorker
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import compute_nixl_compatibility_hash
from vllm.distributed.nixl_utils import NixlWrapper
from vllm.logger import init_logger
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.request import Request, RequestStatus

from prefillshare.engine.handoff import Reason
from prefillshare.engine.lora_cpu import GroupingPunicaWrapper

logger = init_logger("vllm.prefillshare.hooks")

# nixl_agent hard-codes 0: a progress thread that spins on the core the model computes on, with which a prefill
# of 702 tokens takes 49 s instead of 2 s.
_PROGRESS_SLEEP_US = 1000

# By engine: how many seconds its monotonic clock is ahead of this process's.
Clocks = dict[str, float]

# Also when something sends nothing else, this leaves the core to the model.
_RELISTEN_S = 0.05

# Fields of a model's config on which its KV depends besides its weights.
_KV_FIELDS = (
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "sliding_window",
    "layer_types",
    "head_dim",
)


@contextmanager
def sleeping_progress_thread() -> Iterator[None]:
    """NIXL agents made inside have a progress thread that sleeps between polls, on CPUs."""
    if not current_platform.is_cpu():
        yield
        return
    bindings = sys.modules[NixlWrapper.__module__].nixlBind
    make_agent = bindings.nixlAgent

    def make_sleeping_agent(name: str, config: Any) -> Any:
        config.pthrDelay = _PROGRESS_SLEEP_US
        return make_agent(name, config)

    bindings.nixlAgent = make_sleeping_agent
    try:
        yield
    finally:
        bindings.nixlAgent = make_agent


def wait_for_input(longest_s: float) -> None:
    """Has this process's engine, on a CPU, wait for a message after a step that computed nothing, for so long at most.

    A prefill worker whose finished prompts are still to be read goes through a step a few milliseconds, to see whether
    they have been. Nobody waits for that, and each of those steps takes time from what computes on the same core.
    """
    step = EngineCoreProc._process_engine_step
    if not current_platform.is_cpu() or hasattr(step, "longest_s"):
        return

    def step_and_wait(engine: EngineCoreProc) -> bool:
        executed = step(engine)
        if not executed and engine.scheduler.has_requests():
            messages = engine.input_queue
            with messages.not_empty:
                if not messages.queue:
                    messages.not_empty.wait(longest_s)
        return executed

    step_and_wait.longest_s = longest_s  # type: ignore[attr-defined]
    EngineCoreProc._process_engine_step = step_and_wait


def group_lora_tokens() -> None:
    """Has LoRA layers on a CPU multiply a step's tokens adapter by adapter (`lora_cpu`), also those that exist already.

    Layers ask the one wrapper that vLLM made with them, out of a connector's sight, so its class gets other members. A
    vLLM that calls them otherwise keeps its own, which are slower and as right for tokens that have an adapter; the log
    says which it is.
    """
    if not current_platform.is_cpu():
        return
    members = {name: member for name, member in vars(GroupingPunicaWrapper).items() if not name.startswith("__")}
    for name in ("add_lora_linear", "add_lora_embedding", "add_lora_logits"):
        own, expected = (
            list(inspect.signature(kind).parameters) for kind in (members[name], vars(PunicaWrapperCPU)[name])
        )
        if own != expected:
            logger.warning("LoRA layers stay vLLM's own, which are slow on a CPU: %s takes %s", name, expected)
            return
    for name, member in members.items():
        setattr(PunicaWrapperCPU, name, member)
    logger.info("LoRA layers multiply the tokens of a step by adapter")


def announce_base(worker: NixlBaseConnectorWorker, base_identity: str) -> None:
    """Has the worker announce, and expect of its peers, the base's identity and all else that its KV depends on.

    vLLM puts the model's path there, which tells a base and its decode modules apart and two bases under one path not.
    Both sides print their texts when they differ: the first half is the identity, the second the form of the KV.
    """
    worker.compat_hash = f"base {base_identity} kv {kv_form(worker.vllm_config, worker.backend_name)}"
    worker.xfer_handshake_metadata.compatibility_hash = worker.compat_hash


def kv_form(vllm_config: VllmConfig, backend_name: str) -> str:
    """Digest over what makes two workers' KV exchangeable, given the same base: versions, dtype, geometry, attention
    backend (vLLM's own hash, with the model's path taken out), block size, rope and the order within a block."""
    config = copy.copy(vllm_config)
    config.model_config = copy.copy(vllm_config.model_config)
    config.model_config.model = ""
    model = vllm_config.model_config.hf_text_config
    form = {
        "vllm": compute_nixl_compatibility_hash(config, backend_name),
        "block_size": vllm_config.cache_config.block_size,
        **{name: getattr(model, name, None) for name in _KV_FIELDS},
        "attention_isa": attention_isa(vllm_config),
    }
    return hashlib.sha256(json.dumps(form, sort_keys=True, default=str).encode()).hexdigest()[:16]


def attention_isa(vllm_config: VllmConfig) -> str | None:
    """The instructions that a CPU's attention uses, as vLLM calls them; None on other devices.

    vLLM chooses them by the host. They decide how keys and values lie within a block, which nothing else tells: shapes,
    strides and the backend's name are those of every CPU.
    """
    if not current_platform.is_cpu():
        return None
    model, cache = vllm_config.model_config, vllm_config.cache_config
    return str(_get_attn_isa(model.dtype, cache.block_size, model.get_head_size(), cache.cache_dtype))


def keep_listening(scheduler: NixlBaseConnectorScheduler) -> None:
    """Has the thread that answers handshakes outlive messages that it cannot read, and tell when it cannot listen.

    One malformed message ends vLLM's; the worker stays healthy, and no decode worker that starts later can reach it.
    With its port taken vLLM's ends as well, and the worker's start waits for it without limit. Here the start fails:
    `set_xfer_handshake_metadata` raises a RuntimeError.
    """
    listen, start = scheduler._nixl_handshake_listener, scheduler.set_xfer_handshake_metadata
    failures: list[str] = []

    def listen_on(encoded: Any, ready: threading.Event, stop: threading.Event, host: str, port: int) -> None:
        while not stop.is_set():
            try:
                listen(encoded, ready, stop, host, port)
            except Exception as error:
                if not ready.is_set():
                    failures.append(f"cannot listen on {host}, port {port}: {error}")
                    ready.set()  # what vLLM waits for
                    return
                logger.warning("side channel on port %d: a message that is no handshake (%r)", port, error)
                stop.wait(_RELISTEN_S)

    def start_listening(metadata: Any) -> None:
        start(metadata)
        if failures:
            raise RuntimeError(
                f"side channel: {failures[0]}; end what has the port, or change workers.first_side_channel_port"
            )

    scheduler._nixl_handshake_listener = listen_on
    scheduler.set_xfer_handshake_metadata = start_listening


def grammar_failed(request: Request) -> str | None:
    """Why a request that ends with an error failed by the structure it asked for; None if it did not.

    vLLM has no status of its own for it. Without a grammar, the request holds an exception in its place. With one that
    lets no token through (a grammar that cannot be followed to an end passes as well-formed), it ends behind its
    prompt, where nothing but a refusal ends a request with an error.
    """
    asked = request.structured_output_request
    if asked is None or request.status != RequestStatus.FINISHED_ERROR:
        return None
    if isinstance(asked.grammar, Exception):
        return str(asked.grammar)
    return "it lets no token through" if request.num_computed_tokens >= request.num_prompt_tokens else None


def lease_deadline(scheduler: NixlBaseConnectorScheduler, request_id: str) -> float:
    """When a prefill worker gives up the blocks of the request that just finished, on its monotonic clock."""
    return float(scheduler._reqs_need_send[request_id])


def clocks(worker: NixlBaseConnectorWorker) -> Clocks:
    """Those of the peers, as known from the handshakes: to half of their round trips. vLLM drops a peer that is lost.

    A copy: a handshake may end meanwhile, in another thread.
    """
    return dict(worker._engine_clock_offset)


def tell_failures(worker: NixlBaseConnectorWorker, tell: Callable[[str, Reason], None]) -> None:
    """Calls `tell` with the request's id and the reason for every pull that fails. From other threads, too."""
    log_failure = worker._log_failure

    def log_and_tell(failure_type: str, req_id: str | None, *args: Any, **context: Any) -> None:
        if req_id is not None:
            mismatch = "compatibility hash mismatch" in str(context.get("error"))
            tell(req_id, "another_base" if mismatch else "pull_failed")
        log_failure(failure_type, req_id, *args, **context)

    worker._log_failure = log_and_tell
