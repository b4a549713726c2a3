"""The KV connector of both kinds of worker: vLLM's NIXL pull connector, held to PrefillShare's promises.

Loaded inside a vLLM process through `kv_connector_module_path`. What it changes, and why:

- A decode worker never prefills. vLLM computes a prompt locally whenever its remote KV is missing; here that
  would be KV of the wrong weights and answers that look right. Such a request ends with an error instead.
- Transfer parameters are checked before vLLM uses them: a missing field raises in the engine's loop, and every
  running request dies with it.
- Prefill and decode worker must agree on the base's identity, not on the path of a model.
- On a CPU the engine's loop and NIXL's progress thread leave the cores to the model.
"""

import copy
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlPullConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import (
    NixlConnectorMetadata,
    compute_nixl_compatibility_hash,
)
from vllm.distributed.nixl_utils import NixlWrapper
from vllm.logger import init_logger
from vllm.platforms import current_platform

from prefillshare.module import base_kv_length

if TYPE_CHECKING:
    import torch
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.prefillshare.connector")

# The engine polls NIXL in a busy loop while a transfer or a lease is open. On a CPU that loop takes a core from
# the workers that compute; sleeping this long in a step without a forward pass delays a handoff by no more.
_IDLE_STEP_S = 0.003

# nixl_agent hard-codes 0: a progress thread that spins on the core the model computes on, with which a prefill
# of 702 tokens takes 49 s instead of 2 s.
_PROGRESS_SLEEP_US = 1000

# A handoff may be used once: after it the prefill worker gives the blocks to other sessions. Remembering this many
# is about 10 MB and hours of traffic, against a lease of 30 s.
_REMEMBERED_HANDOFFS = 50_000

_FIELDS: dict[str, type] = {
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "remote_block_ids": list,
    "remote_num_tokens": int,
    "tp_size": int,
    "dcp_size": int,
    "pp_size": int,
}


class SharedPrefillMetadata(NixlConnectorMetadata):
    """What the scheduler tells the worker for one step: NIXL's part, and the requests to fail."""

    def __init__(self, nixl: NixlConnectorMetadata, refused: set[str]) -> None:
        self.__dict__.update(nixl.__dict__)
        self.refused = refused


class SharedPrefillConnector(NixlPullConnector):
    """Hands KV from prefill workers (`kv_producer`) to decode workers (`kv_consumer`).

    `kv_connector_extra_config` must hold `base_identity`, the digest of the base whose KV is handed over.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        settings = vllm_config.kv_transfer_config
        if settings.kv_load_failure_policy != "fail":
            raise ValueError("kv_load_failure_policy must be 'fail': 'recompute' prefills with the decode module")
        if settings.kv_role not in ("kv_producer", "kv_consumer"):
            raise ValueError(f"kv_role must be 'kv_producer' or 'kv_consumer', found {settings.kv_role!r}")
        self._decodes = settings.kv_role == "kv_consumer"
        if self._decodes and vllm_config.cache_config.enable_prefix_caching:
            raise ValueError("a decode worker needs --no-enable-prefix-caching: its cache would reuse own KV as prefix")
        self._base_identity: str = settings.kv_connector_extra_config["base_identity"]
        self._block_size: int = vllm_config.cache_config.block_size
        self._used_handoffs: OrderedDict[str, None] = OrderedDict()
        self._refused: set[str] = set()  # scheduler side: for the next step; worker side: to report in this one
        self._forward_runs = True
        affinity = os.sched_getaffinity(0)
        with _sleeping_progress_thread():
            super().__init__(vllm_config, role, kv_cache_config)
        # On a CPU the stock connector moves this thread to the machine's last core, whatever it was pinned to:
        # all workers of the machine would compute on that one core.
        os.sched_setaffinity(0, affinity)

    # Scheduler side

    def on_new_request(self, request: "Request") -> None:
        reason = self._reason_to_refuse(request)
        if reason is not None:
            logger.warning("refusing request %s: %s", request.request_id, reason)
            request.kv_transfer_params = {"refused": reason}
            request.skip_reading_prefix_cache = False  # else vLLM drops the load that the refusal needs
            return
        super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._must_fail(request):
            # A load of one token, which the worker will report as failed: the connector interface has no other
            # way to end a request. Until then it holds a single block.
            return 1, True
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        if num_external_tokens and self._must_fail(request):
            if request.num_preemptions:
                logger.warning("failing request %s: it was preempted and lost the base's KV", request.request_id)
            self._refused.add(request.request_id)
            return
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        refused, self._refused = self._refused, set()
        return SharedPrefillMetadata(super().build_connector_meta(scheduler_output), refused)

    def _reason_to_refuse(self, request: "Request") -> str | None:
        params = request.kv_transfer_params
        if not self._decodes:
            return prefill_refusal(params)
        reason = decode_refusal(params)
        if reason is not None or request.abort_immediately:  # aborted: only tells the prefill worker to let go
            return reason
        assert params is not None
        reason = handoff_mismatch(params, request.num_prompt_tokens, self._block_size)
        if reason is None and request.skip_reading_prefix_cache:
            reason = "prompt_logprobs need the prompt to be computed here, with the decode module's weights"
        handoff = params["remote_request_id"]
        if reason is None and handoff in self._used_handoffs:
            reason = f"the handoff {handoff} was used before, its blocks may hold another session by now"
        self._used_handoffs[handoff] = None
        if len(self._used_handoffs) > _REMEMBERED_HANDOFFS:
            self._used_handoffs.popitem(last=False)
        return reason

    def _must_fail(self, request: "Request") -> bool:
        """Whether the request was refused, or would now be prefilled by the decode module.

        The latter happens to a request that was preempted and lost its KV: its handoff is used up. A prompt of
        one token has no base KV, so it may be computed here at any time.
        """
        params = request.kv_transfer_params
        if params is not None and "refused" in params:
            return True
        if not self._decodes or base_kv_length(request.num_prompt_tokens) == 0:
            return False
        return not params or not params["do_remote_prefill"]

    # Worker side

    def register_kv_caches(self, kv_caches: dict[str, "torch.Tensor"]) -> None:
        super().register_kv_caches(kv_caches)
        worker = self.connector_worker
        worker.compat_hash = compute_nixl_compatibility_hash(
            named_by_base(worker.vllm_config, self._base_identity), worker.backend_name
        )
        worker.xfer_handshake_metadata.compatibility_hash = worker.compat_hash

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        self._forward_runs = forward_context.attn_metadata is not None
        self._refused |= self._connector_metadata.refused
        super().start_load_kv(forward_context, **kwargs)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if not self._forward_runs and current_platform.is_cpu():
            time.sleep(_IDLE_STEP_S)
        results = super().get_transfer_results(finished_req_ids)
        refused, self._refused = self._refused, set()
        results.failed_recving |= refused  # ends the request with an error
        results.finished_recving |= refused  # frees its block
        return results


def prefill_refusal(params: Any) -> str | None:
    """Why a prefill worker must not take a request with these transfer parameters; None when it may."""
    if params is None:
        return None
    if not isinstance(params, dict):
        return f"kv_transfer_params must be an object, found {type(params).__name__}"
    if params.get("do_remote_prefill"):
        return "a prefill worker computes prompts itself: do_remote_prefill must be false"
    if params.get("remote_block_ids"):
        return "a prefill worker takes no KV from others: remote_block_ids must be empty"
    return None


def decode_refusal(params: Any) -> str | None:
    """Why a decode worker must not take a request with these transfer parameters; None when they are usable."""
    if not isinstance(params, dict) or params.get("do_remote_prefill") is not True or params.get("do_remote_decode"):
        return "it does not come from a prefill worker, and a decode worker never prefills"
    for name, kind in _FIELDS.items():
        if not isinstance(params.get(name), kind) or isinstance(params[name], bool):
            return f"kv_transfer_params.{name} must be {kind.__name__}, found {params.get(name)!r}"
    groups = params["remote_block_ids"]
    if not all(
        isinstance(group, list) and all(type(block) is int and block >= 0 for block in group) for group in groups
    ):
        return "kv_transfer_params.remote_block_ids must be lists of block numbers"
    return None


def handoff_mismatch(params: dict[str, Any], prompt_tokens: int, block_size: int) -> str | None:
    """Why the handoff does not cover exactly this prompt; None when it does."""
    if params["remote_num_tokens"] != prompt_tokens:
        return f"the prefill worker computed {params['remote_num_tokens']} tokens, this prompt has {prompt_tokens}"
    needed = -(-prompt_tokens // block_size)
    found = [len(group) for group in params["remote_block_ids"]]
    if found != [needed]:
        return f"{prompt_tokens} tokens are [{needed}] blocks of {block_size}, the handoff has {found}"
    return None


def named_by_base(vllm_config: VllmConfig, base_identity: str) -> VllmConfig:
    """A copy for NIXL's compatibility hash, in which the base's identity stands for the path of the model.

    Everything else stays in the hash: versions, dtype, KV geometry, attention backend.
    """
    named = copy.copy(vllm_config)
    named.model_config = copy.copy(vllm_config.model_config)
    named.model_config.model = base_identity
    return named


@contextmanager
def _sleeping_progress_thread() -> Iterator[None]:
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
