"""What a worker counts of its handoffs, on vLLM's own `/metrics` and with vLLM's labels.

prefillshare_handoff_pulled_tokens_total      decode: prompt tokens whose base KV was pulled
prefillshare_handoff_pulled_bytes_total       decode: bytes that this took, block by block
prefillshare_handoff_reused_tokens_total      decode: prompt tokens whose base KV was here already
prefillshare_handoff_reused_blocks_total      decode: the blocks that hold them
prefillshare_handoff_refusals_total           requests refused, by `reason`
prefillshare_handoff_seconds                  decode: from the blocks' allocation until the KV is here; a histogram
prefillshare_handoff_lease_expiries_total     prefill: prompts whose KV nobody pulled in time
"""

from typing import Any, get_args

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import PromMetric, PromMetricT
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats, NixlPromMetrics

from prefillshare.engine.handoff import Reason, Refusal
from prefillshare.engine.refusals import REFUSALS

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# The key in the statistics (NIXL's own among them), the metric, its help.
_COUNTERS = (
    ("pulled_tokens", "pulled_tokens", "Prompt tokens whose base KV was pulled from a prefill worker."),
    ("bytes_transferred", "pulled_bytes", "Bytes of KV pulled from prefill workers."),
    ("reused_tokens", "reused_tokens", "Prompt tokens whose base KV was in this worker's cache."),
    ("reused_blocks", "reused_blocks", "Blocks of base KV that a request found in this worker's cache."),
    ("num_kv_expired_reqs", "lease_expiries", "Prompts whose KV was given up because nobody pulled it in time."),
)


class HandoffStats(NixlKVConnectorStats):
    """What happened since the last step, as lists, so that vLLM can put those of several workers together.

    `refusals` holds [request id, reason, message]: besides the count, it is how the API server learns the reason.
    """

    def reset(self) -> None:
        super().reset()
        own = ("pulled_tokens", "reused_tokens", "reused_blocks", "handoff_seconds", "refusals")
        self.data |= {name: [] for name in own}

    def is_empty(self) -> bool:
        return not any(self.data.values())

    def record_plan(self, *, reused_tokens: int, block_size: int) -> None:
        self.data["reused_tokens"].append(reused_tokens)
        self.data["reused_blocks"].append(reused_tokens // block_size)

    def record_pull(self, *, tokens: int, seconds: float) -> None:
        self.data["pulled_tokens"].append(tokens)
        self.data["handoff_seconds"].append(seconds)

    def record_refusal(self, request_id: str, refusal: Refusal) -> None:
        self.data["refusals"].append([request_id, refusal.reason, refusal.message])


class HandoffMetrics(NixlPromMetrics):
    """vLLM's metrics of NIXL, and PrefillShare's beside them."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._labels = per_engine_labelvalues
        self._counters = {
            key: self._counter_cls(name=f"prefillshare_handoff_{name}", documentation=text, labelnames=labelnames)
            for key, name, text in _COUNTERS
        }
        self._seconds = self._histogram_cls(
            name="prefillshare_handoff_seconds",
            documentation="From the allocation of a request's blocks until the base's KV is in them.",
            buckets=_BUCKETS_S,
            labelnames=labelnames,
        )
        self._refusals = self._counter_cls(
            name="prefillshare_handoff_refusals",
            documentation="Requests that this worker refused, by reason.",
            labelnames=[*labelnames, "reason"],
        )
        REFUSALS.fed = True
        for values in per_engine_labelvalues.values():  # a series that exists at zero can be alerted on
            for counter in self._counters.values():
                counter.labels(*values)
            self._seconds.labels(*values)
            for reason in get_args(Reason):
                self._refusals.labels(*values, reason)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        super().observe(transfer_stats_data, engine_idx)
        values = self._labels[engine_idx]
        for key, counter in self._counters.items():
            counter.labels(*values).inc(sum(transfer_stats_data[key]))
        for seconds in transfer_stats_data["handoff_seconds"]:
            self._seconds.labels(*values).observe(seconds)
        for request_id, reason, message in transfer_stats_data["refusals"]:
            REFUSALS.note(request_id, Refusal(reason, message))
            self._refusals.labels(*values, reason).inc()
