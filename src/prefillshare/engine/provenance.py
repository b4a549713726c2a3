"""Which of a decode worker's blocks may stay in its prefix cache: those that hold base KV and nothing else.

vLLM caches every full block of a request. On a decode worker the blocks from position n-1 on hold own KV; a later turn,
whose prompt contains this answer, would find them and take them for the base's. So a request caches no more than the
split, and nothing at all before its base KV has arrived.

What is cached is then base KV, whichever module pulled it. vLLM keys a block by the LoRA adapter of the request; here
all adapters' blocks are the same, and are keyed as the base's.
"""

from typing import TYPE_CHECKING, Protocol

from prefillshare.module import base_kv_length

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import Request


class HoldsBaseKV(Protocol):
    """Whether the request's blocks hold, or are about to hold, the base's KV of its whole prompt."""

    def __call__(self, request: "Request") -> bool: ...


def cacheable_tokens(request: "Request", holds_base_kv: bool) -> int:
    """How many of the request's leading tokens may be found by later requests."""
    return base_kv_length(request.num_prompt_tokens) if holds_base_kv else 0


def cache_base_kv_only(manager: "KVCacheManager", holds_base_kv: HoldsBaseKV) -> None:
    """From now on `manager` caches base KV alone. All its ways to cache blocks go through the coordinator."""
    cache_blocks = manager.coordinator.cache_blocks

    def cache_base_blocks(request: "Request", num_computed_tokens: int) -> None:
        cache_blocks(request, min(num_computed_tokens, cacheable_tokens(request, holds_base_kv(request))))

    manager.coordinator.cache_blocks = cache_base_blocks


def key_blocks_by_base(request: "Request") -> None:
    """Gives the request's blocks the keys that they have without its adapter. To be called before it is scheduled."""
    adapter = request.lora_request
    if adapter is None:
        return
    request.lora_request = None
    try:
        request.block_hashes.clear()
        request.update_block_hashes()
    finally:
        request.lora_request = adapter
