"""Accelerators and models by their published figures, and what follows for a worker (a roofline).

Prefill is bound by arithmetic, decode by reading weights and KV. How much of the peak is reached is an assumption, with
its name: `Efficiency`. docs/simulation.md gives the sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from prefillshare.errors import UserError
from prefillshare.simulate.cost import Cost, Link, WorkerProfile

Known = TypeVar("Known")

BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Per device. Bandwidths in bytes a second, one way."""

    name: str
    flops: float  # bfloat16, dense, a second
    memory_bytes: float
    memory_bandwidth: float
    nvlink: float
    network: float  # InfiniBand or Ethernet, the device's share
    max_num_batched_tokens: int  # vLLM's default for its API server on this device


ACCELERATORS: Mapping[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("a100-80g", 312e12, 80e9, 2.039e12, nvlink=300e9, network=25e9, max_num_batched_tokens=2048),
        Accelerator("h100", 989.4e12, 80e9, 3.35e12, nvlink=450e9, network=50e9, max_num_batched_tokens=8192),
    )
}


@dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder with grouped-query attention and a gated MLP, by the fields of its config.json."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int  # of a prompt with its output, at most
    tied: bool = False  # the output layer is the embedding
    head_norms: bool = False  # of queries and keys

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        norms = 2 * self.hidden + 2 * self.head_dim * self.head_norms
        return self.layers * (attention + 3 * self.hidden * self.intermediate + norms) + self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.embedding * (1 if self.tied else 2)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
        Model("qwen3-14b", 40, 5120, 40, 8, 128, 17408, 151936, 40960, head_norms=True),
        Model("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 8192, tied=True),
    )
}


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
    accelerator: str,
    model: str,
    *,
    link: str = "network",
    efficiency: Efficiency | None = None,
    block_size: int = 16,
    max_num_seqs: int = 256,
) -> WorkerProfile:
    """
    Args:
        accelerator: a key of `ACCELERATORS`.
        model: a key of `MODELS`.
        link: between prefill and decode workers: "nvlink" within a machine, "network" between machines.

    Raises:
        UserError: a name that is not known, or a model that does not fit.
    """
    device, served = _known("hardware", accelerator, ACCELERATORS), _known("model", model, MODELS)
    bandwidth = _known("link", link, {"nvlink": device.nvlink, "network": device.network})
    assumed = efficiency or Efficiency()
    flops, memory_bandwidth = device.flops * assumed.flops, device.memory_bandwidth * assumed.memory_bandwidth
    weights = (served.layer_parameters + served.embedding) * BYTES  # of the input embedding a few rows are read
    kv_bytes = device.memory_bytes * assumed.memory_used - assumed.activations_bytes - served.parameters * BYTES
    if kv_bytes <= 0:
        raise UserError(f"model: {model} leaves no memory for KV on one {accelerator}")
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
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=device.max_num_batched_tokens,
        leg_s=assumed.leg_s,
    )


def _known(field: str, name: str, choices: Mapping[str, Known]) -> Known:
    if name not in choices:
        raise UserError(f"{field}: there is no {name!r}; there is {', '.join(sorted(choices))}")
    return choices[name]
