"""What follows for a worker from the figures of its accelerator and its model (a roofline).

Prefill is bound by arithmetic, decode by reading weights and KV. How much of the peak is reached is an assumption, with
its name: `Efficiency`. A worker is one accelerator: a model is not split over several.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prefillshare.errors import UserError
from prefillshare.simulate.accelerators import accelerator_of
from prefillshare.simulate.cost import Cost, Link, WorkerProfile
from prefillshare.simulate.models import BYTES, model_of


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Assumed: what is reached of the published peaks, and what they do not tell."""

    flops: float = 0.5
    memory_bandwidth: float = 0.75
    link: float = 0.6
    link_latency_s: float = 0.002
    launch_s: float = 0.002  # of a step, on the host
    sequence_s: float = 10e-6  # of each running sequence in a step: sampling, streaming
    leg_s: float = 0.003  # of a leg beside its worker's steps: HTTP, tokenising, routing
    memory_used: float = 0.9  # vLLM's gpu_memory_utilization
    activations_bytes: float = 4e9


def worker_profile(
    accelerator: str, model: str, *, link: str = "network", efficiency: Efficiency | None = None, block_size: int = 16
) -> WorkerProfile:
    """
    Args:
        accelerator: what `accelerator_of` takes.
        model: what `model_of` takes.
        link: between prefill and decode workers: "nvlink" within a machine, "network" between machines.

    Raises:
        UserError: what is not known, a link that the accelerator does not have, or a model that does not fit.
    """
    device, served, assumed = accelerator_of(accelerator), model_of(model), efficiency or Efficiency()
    bandwidth = _bandwidth(accelerator, {"nvlink": device.nvlink, "network": device.network}, link)
    flops, memory_bandwidth = device.flops * assumed.flops, device.memory_bandwidth * assumed.memory_bandwidth
    weights = (served.layer_parameters + served.embedding) * BYTES  # of the input embedding a few rows are read
    usable = device.memory_bytes * assumed.memory_used - assumed.activations_bytes
    kv_bytes = usable - served.parameters * BYTES
    if kv_bytes < block_size * served.kv_bytes_per_token:
        raise UserError(
            f"model: the weights of {model}, {served.parameters * BYTES / 1e9:.1f} GB, leave no memory for KV on one "
            f"{accelerator}, where weights and KV have {max(0.0, usable) / 1e9:.1f} GB, and a worker is one "
            "accelerator; choose a smaller model, or hardware with more memory"
        )
    cost = Cost(
        step_s=assumed.launch_s + weights / memory_bandwidth,
        launch_s=assumed.launch_s,
        token_s=2 * served.layer_parameters / flops,
        pair_s=4 * served.layers * served.heads * served.head_dim / flops,
        sequence_s=assumed.sequence_s,
        kv_token_s=served.kv_bytes_per_token / memory_bandwidth,
    )
    return WorkerProfile(
        cost,
        Link(assumed.link_latency_s, bandwidth * assumed.link),
        kv_bytes_per_token=served.kv_bytes_per_token,
        kv_tokens=int(kv_bytes / served.kv_bytes_per_token),
        block_size=block_size,
        max_num_batched_tokens=device.max_num_batched_tokens,
        leg_s=assumed.leg_s,
    )


def _bandwidth(accelerator: str, links: Mapping[str, float | None], link: str) -> float:
    there = {name: bandwidth for name, bandwidth in links.items() if bandwidth is not None}
    if link not in there:
        raise UserError(f"link: {accelerator} has no {link!r}; it has {', '.join(sorted(there))}")
    return there[link]
