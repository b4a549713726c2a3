"""What a worker's steps and handoffs take, in seconds, as functions of what is in them."""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

Work = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one model on one device. A step computes prompt tokens, or the next token of each running sequence, or both.

    A step takes `step_s` (reading the weights, launching) or, if that is longer, `launch_s` and `token_s` for each
    token in it, of prompts or new: the weights are read once, whatever is in the step. To that come `sequence_s` for
    each running sequence, `kv_token_s` for each token of KV that these read, and `pair_s` for each pair of a prompt
    token with one that it attends to.
    """

    step_s: float
    token_s: float
    launch_s: float = 0.0
    pair_s: float = 0.0
    sequence_s: float = 0.0
    kv_token_s: float = 0.0

    def step(self, tokens: int, pairs: float, sequences: int, kv_tokens: float) -> float:
        computed = self.launch_s + self.token_s * (tokens + sequences)
        growing = self.sequence_s * sequences + self.kv_token_s * kv_tokens
        return max(self.step_s, computed) + self.pair_s * pairs + growing

    def steps(self, count: int, sequences: int, kv_tokens: int) -> float:
        """Of `count` steps without prompts. Every sequence becomes a token longer with each of them."""
        first = self.step(0, 0.0, sequences, kv_tokens)
        return count * (first + self.kv_token_s * sequences * (count - 1) / 2)

    def steps_begun(self, seconds: float, sequences: int, kv_tokens: int) -> int:
        """How many such steps have begun after that time; at least one."""
        growth = self.kv_token_s * sequences / 2
        first = self.step(0, 0.0, sequences, kv_tokens) - growth
        if growth > 1e-12 * first:
            exact = (sqrt(first * first + 4 * growth * seconds) - first) / (2 * growth)
        else:
            exact = seconds / first
        return max(1, ceil(exact - 1e-9))


@dataclass(frozen=True, slots=True)
class Link:
    """How KV gets from one worker to another."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How many times as long a step takes while another device of the host is busy, by what both do: cores of one
    processor share its memory and its caches."""

    prefill_beside_prefill: float = 1.0
    prefill_beside_decode: float = 1.0
    decode_beside_prefill: float = 1.0
    decode_beside_decode: float = 1.0

    def of(self, work: Work, other: Work) -> float:
        return float(getattr(self, f"{work}_beside_{other}"))


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """A worker: one model on one device, as it is configured. All workers of a deployment are alike, but for what is
    said of decode workers."""

    cost: Cost
    link: Link
    kv_bytes_per_token: int
    kv_tokens: int  # that a prefill worker has room for
    decode_kv_tokens: int | None = None  # if a decode worker has another amount
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    leg_s: float = 0.0  # what a leg takes beside its worker's steps: HTTP, tokenising, routing
    decode_cost: Cost | None = None  # of a decode worker's steps, if they cost something else: with adapters
    slowdown: Slowdown | None = None  # where devices are cores of one host; costs are then those of one core alone

    @property
    def cost_of_decode(self) -> Cost:
        return self.decode_cost or self.cost
