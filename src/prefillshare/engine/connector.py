"""The KV connector of both kinds of worker: vLLM's NIXL pull connector, held to PrefillShare's promises.

Loaded inside a vLLM process through `kv_connector_module_path`. What it changes, and why:

- A decode worker never prefills. vLLM computes a prompt locally whenever its remote KV is missing; here that
  would be KV of the wrong weights and answers that look right. Such a request ends with a refusal instead.
- A decode worker pulls base KV for positions 0..n-2 of an n-token prompt, less what its cache holds, and caches that
  and nothing else (`provenance`).
- A handoff counts only with a prefill worker's seal, for the prompt it was made for, once, and while the prefill
  worker still holds the blocks. A missing field would raise in the engine's loop, and every running request would die.
- A pull that a stopped prefill worker does not answer ends the request after a while; its blocks stay reserved until
  the read has ended, so that it never writes into another request's.
- A prompt with a token that the model has no embedding for ends with a refusal, not with the engine.
- Prefill and decode worker must agree on the base's identity, not on the path of a model.
- A prompt's blocks hold the KV of all its positions, attention windows or not (`kv_groups`).
- On a CPU the engine's loop and NIXL's progress thread leave the cores to the model, and LoRA layers take few products.
"""

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlPullConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.request import RequestStatus

from prefillshare.engine import hooks
from prefillshare.engine.checkpoint import require_planned
from prefillshare.engine.handoff import (
    HANDOFF_KEY_VARIABLE,
    Reason,
    Refusal,
    decode_refusal,
    prefill_refusal,
    prompt_refusal,
    seal,
    seal_refusal,
    token_refusal,
)
from prefillshare.engine.kv_groups import require_whole_prompts
from prefillshare.engine.provenance import cache_base_kv_only, key_blocks_by_base
from prefillshare.engine.reads import Reads
from prefillshare.engine.refusals import REFUSALS
from prefillshare.engine.stats import HandoffMetrics, HandoffStats
from prefillshare.engine.version import require_supported_vllm
from prefillshare.module import base_kv_length

if TYPE_CHECKING:
    import torch
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.prefillshare.connector")

# The engine polls NIXL in a busy loop while a transfer or a lease is open. On a CPU that loop takes a core from
# the workers that compute. A decode worker that sleeps this long in a step without a forward pass delays a handoff by
# no more; a prefill worker that waits longer between its own frees blocks later by no more, and a prompt ends its wait.
_PULL_POLL_S = 0.003
_LEASE_POLL_S = 0.03

# A handoff may be used once: after it the prefill worker gives the blocks to other sessions. Remembering this many
# is about 10 MB and hours of traffic, against a lease of 30 s.
_REMEMBERED_HANDOFFS = 50_000

_LONGEST_REASON = 500  # characters of what a grammar compiler says of a grammar

_MESSAGES: dict[Reason, str] = {
    "pull_failed": "the prefill worker's KV could not be read",
    "another_base": "the prefill worker runs another base, or keeps its KV in another form",
}


class SharedPrefillMetadata(NixlConnectorMetadata):
    """What the scheduler tells the worker for one step: NIXL's part, and the requests to fail."""

    def __init__(self, nixl: NixlConnectorMetadata, refused: set[str]) -> None:
        self.__dict__.update(nixl.__dict__)
        self.refused = refused


class SharedPrefillConnector(NixlPullConnector):
    """Hands KV from prefill workers (`kv_producer`) to decode workers (`kv_consumer`).

    `kv_connector_extra_config` must hold `base_identity`, the digest of the base whose KV is handed over, `modules`,
    the folders of the decode modules that the worker serves with their `instructions`, and `pull_timeout_s`.

    Raises:
        UserError: another version of vLLM, or another base or module on disk than the deployment was planned with.
        ValueError: a setting, or a model, with which wrong tokens would be possible.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        require_supported_vllm()
        settings = vllm_config.kv_transfer_config
        if settings.kv_load_failure_policy != "fail":
            raise ValueError("kv_load_failure_policy must be 'fail': 'recompute' prefills with the decode module")
        if settings.kv_role not in ("kv_producer", "kv_consumer"):
            raise ValueError(f"kv_role must be 'kv_producer' or 'kv_consumer', found {settings.kv_role!r}")
        self._key = os.environ.get(HANDOFF_KEY_VARIABLE, "")
        if not self._key:
            raise ValueError(f"{HANDOFF_KEY_VARIABLE} is not set; give all workers of a deployment the same secret")
        extra = settings.kv_connector_extra_config
        self._decodes = settings.kv_role == "kv_consumer"
        self._base_identity: str = extra["base_identity"]
        self._block_size: int = vllm_config.cache_config.block_size
        self._vocabulary: int = vllm_config.model_config.get_vocab_size()
        self._used_handoffs: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._pulls: dict[str, tuple[int, float]] = {}  # scheduler side, by request: tokens, and since when
        self._refusing: set[str] = set()  # scheduler side: until the worker has reported them
        self._stats = HandoffStats()
        self._reads = Reads(extra["pull_timeout_s"])  # worker side
        self._refused: set[str] = set()  # scheduler side: for the next step; worker side: to report in this one
        self._forward_runs = True
        if role == KVConnectorRole.SCHEDULER:
            modules = {Path(folder): instructions for folder, instructions in extra["modules"].items()}
            require_planned(self._base_identity, model=Path(vllm_config.model_config.model), modules=modules)
            require_whole_prompts(kv_cache_config.kv_cache_groups, vllm_config.model_config.max_model_len)
            if not self._decodes:
                hooks.wait_for_input(_LEASE_POLL_S)
        elif vllm_config.lora_config is not None:
            hooks.group_lora_tokens()
        affinity = os.sched_getaffinity(0)
        with hooks.sleeping_progress_thread():
            super().__init__(vllm_config, role, kv_cache_config)
        if self.connector_scheduler is not None:
            hooks.keep_listening(self.connector_scheduler)
        # On a CPU the stock connector moves this thread to the machine's last core, whatever it was pinned to:
        # all workers of the machine would compute on that one core.
        os.sched_setaffinity(0, affinity)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return HandoffStats() if data is None else HandoffStats(data=data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics:
        return HandoffMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        if self.connector_worker is not None:
            return super().get_kv_connector_stats()
        return None if self._stats.is_empty() else self._stats.clone_and_reset()

    # Scheduler side

    def bind_kv_cache_manager(self, kv_cache_manager: "KVCacheManager") -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        if self._decodes:
            cache_base_kv_only(kv_cache_manager, self._holds_base_kv)

    def on_new_request(self, request: "Request") -> None:
        refusal = self._why_refuse(request)
        if refusal is not None:
            logger.warning("refusing request %s: %s: %s", request.request_id, refusal.reason, refusal.message)
            REFUSALS.note(request.request_id, refusal)
            request.kv_transfer_params = {"refused": refusal.reason}
            request.skip_reading_prefix_cache = False  # else vLLM drops the load that the refusal needs
            return
        if self._decodes:
            key_blocks_by_base(request)
        super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._must_fail(request):
            # A load of one token, which the worker will report as failed: the connector interface has no other
            # way to end a request. Until then it holds a single block.
            return 1, True
        if not self._decodes:
            return super().get_num_new_matched_tokens(request, num_computed_tokens)
        missing = base_kv_length(request.num_prompt_tokens) - num_computed_tokens
        return max(missing, 0), missing > 0

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        if num_external_tokens and self._must_fail(request):
            if not self._was_refused(request):
                refusal = Refusal("preempted", "there was no room for it any more, and the base's KV was given up")
                logger.warning("refusing request %s: %s", request.request_id, refusal.reason)
                REFUSALS.note(request.request_id, refusal)
            self._refused.add(request.request_id)
            self._refusing.add(request.request_id)
            return
        params = request.kv_transfer_params
        if self._decodes and params and params["do_remote_prefill"]:  # once; vLLM comes again when the KV is there
            self._plan_pull(request, params, num_external_tokens)
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def _plan_pull(self, request: "Request", params: dict[str, Any], tokens: int) -> None:
        split = base_kv_length(request.num_prompt_tokens)
        self._stats.record_plan(reused_tokens=split - tokens, block_size=self._block_size)
        if tokens:
            self._pulls[request.request_id] = (tokens, time.perf_counter())
            # NIXL matches the ends of both block lists. A last block that holds position n-1 alone is not pulled.
            kept = -(-split // self._block_size)
            params["remote_block_ids"] = [group[:kept] for group in params["remote_block_ids"]]

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        refused, self._refused = self._refused, set()
        return SharedPrefillMetadata(super().build_connector_meta(scheduler_output), refused)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        super().update_connector_output(connector_output)
        failed = connector_output.failed_recving or set()
        for request_id in failed:
            # A pull that was given up may fail yet, long after its request was refused.
            if self._pulls.pop(request_id, None) is None and request_id not in self._refusing:
                continue
            self._refusing.discard(request_id)
            refusal = REFUSALS.get(request_id) or Refusal("pull_failed", _MESSAGES["pull_failed"])
            self._stats.record_refusal(request_id, refusal)
        for request_id in (connector_output.finished_recving or set()) - failed:
            if pull := self._pulls.pop(request_id, None):
                tokens, since = pull
                self._stats.record_pull(tokens=tokens, seconds=time.perf_counter() - since)

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if request.status == RequestStatus.FINISHED_ABORTED:
            self._pulls.pop(request.request_id, None)  # if it fails now, that is nobody's refusal
        # A request that was refused ends with an error, too, and may have come as far as one without an answer.
        if self._decodes and not REFUSALS.get(request.request_id) and (why := hooks.grammar_failed(request)):
            message = f"no answer can be made with the structure asked for: {why[:_LONGEST_REASON]}"
            refusal = Refusal("grammar_failed", message)
            REFUSALS.note(request.request_id, refusal)
            self._stats.record_refusal(request.request_id, refusal)
        held, params = super().request_finished_all_groups(request, block_ids)
        if held and params is not None and self.connector_scheduler is not None:
            deadline = hooks.lease_deadline(self.connector_scheduler, request.request_id)
            params = seal(params, request.prompt_token_ids or [], deadline, self._key)
        return held, params

    def _why_refuse(self, request: "Request") -> Refusal | None:
        params, prompt = request.kv_transfer_params, request.prompt_token_ids or []
        if not self._decodes:
            return prefill_refusal(params) or token_refusal(prompt, self._vocabulary)
        refusal = decode_refusal(params) or seal_refusal(params, self._key)
        if refusal is not None:
            return refusal
        assert params is not None
        # Aborted at once: comes with another prompt, and only tells the prefill worker to let go. It uses the handoff
        # up all the same, and must not have blocks given away that a call is reading.
        if not request.abort_immediately:
            refusal = prompt_refusal(params, prompt, self._block_size) or token_refusal(prompt, self._vocabulary)
            if refusal is None and (request.skip_reading_prefix_cache or request.resumable):
                refusal = Refusal(
                    "local_prefill_asked",
                    "prompt_logprobs, and prompts that come in parts, need the prompt to be computed here, with the "
                    "decode module's weights",
                )
        return refusal or self._why_not_again((params["remote_engine_id"], params["remote_request_id"]))

    def _why_not_again(self, handoff: tuple[str, str]) -> Refusal | None:
        if handoff in self._used_handoffs:
            return Refusal("used_handoff", "this handoff was used before, its blocks may hold another session by now")
        self._used_handoffs[handoff] = None
        if len(self._used_handoffs) > _REMEMBERED_HANDOFFS:
            self._used_handoffs.popitem(last=False)
        return None

    def _was_refused(self, request: "Request") -> bool:
        params = request.kv_transfer_params
        return params is not None and "refused" in params

    def _must_fail(self, request: "Request") -> bool:
        """Whether the request was refused, or would now be prefilled by the decode module.

        The latter happens to a request that was preempted and lost its KV: its handoff is used up. A prompt of one
        token has no base KV and is computed here, but once: then a later turn's base KV may be cached for its answer.
        """
        if self._was_refused(request) or not self._decodes:
            return self._was_refused(request)
        if base_kv_length(request.num_prompt_tokens) == 0:
            return request.num_preemptions > 0
        params = request.kv_transfer_params
        return not params or not params["do_remote_prefill"]

    def _holds_base_kv(self, request: "Request") -> bool:
        """vLLM asks after a pull has succeeded, and as it goes on from there; a preempted request pulls nothing."""
        return not self._was_refused(request) and request.num_preemptions == 0

    # Worker side

    def register_kv_caches(self, kv_caches: dict[str, "torch.Tensor"]) -> None:
        super().register_kv_caches(kv_caches)
        worker = self.connector_worker
        assert worker is not None
        worker.xfer_stats = HandoffStats()
        hooks.announce_base(worker, self._base_identity)
        hooks.tell_failures(worker, self._note_failure)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        self._forward_runs = forward_context.attn_metadata is not None
        metadata = self._connector_metadata
        self._refused |= metadata.refused
        for request_id, pull in metadata.reqs_to_recv.items():
            if pull.awaiting_kvs:
                self._reads.begin(request_id, pull.remote.engine_id, pull.remote.blocks_expiry_time)
        super().start_load_kv(forward_context, **kwargs)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._decodes and not self._forward_runs and current_platform.is_cpu():
            time.sleep(_PULL_POLL_S)
        assert self.connector_worker is not None
        clocks = hooks.clocks(self.connector_worker)  # before vLLM forgets a lost peer, at the end of this call
        results = super().get_transfer_results(finished_req_ids)
        for request_id in results.finished_recving:
            refusal = self._reads.end(request_id, clocks)
            if refusal and request_id not in results.failed_recving:
                self._fail(request_id, refusal, results)
        for request_id, overdue in self._reads.overdue():  # not called finished: it may still write into the blocks
            self._fail(request_id, overdue, results)
        refused, self._refused = self._refused, set()
        results.failed_recving |= refused  # ends the request with an error
        results.finished_recving |= refused  # frees its block
        return results

    def _fail(self, request_id: str, refusal: Refusal, results: KVConnectorTransferResults) -> None:
        REFUSALS.note(request_id, refusal)
        results.failed_recving.add(request_id)

    def _note_failure(self, request_id: str, reason: Reason) -> None:
        REFUSALS.note(request_id, Refusal(reason, _MESSAGES[reason]))
