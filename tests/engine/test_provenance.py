"""vLLM's own cache manager, told to keep base KV only: what later requests find of earlier ones."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from prefillshare.engine.provenance import cache_base_kv_only, key_blocks_by_base
from prefillshare.module import base_kv_length

BLOCK = 4


def make_manager(*, guarded: bool = True, holds_base_kv: bool = True) -> KVCacheManager:
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    config = KVCacheConfig(num_blocks=64, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    init_none_hash(sha256)
    manager = KVCacheManager(config, max_model_len=128, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
    if guarded:
        cache_base_kv_only(manager, lambda request: holds_base_kv)
    return manager


def make_request(ids: Sequence[int], *, adapter: str | None = None, salt: str | None = None) -> Request:
    lora = LoRARequest(adapter, hash(adapter) % 1000 + 1, f"/{adapter}") if adapter else None
    request = Request(
        request_id=f"{adapter}-{len(ids)}-{id(ids)}",
        prompt_token_ids=list(ids),
        sampling_params=SamplingParams(max_tokens=32),
        pooling_params=None,
        lora_request=lora,
        cache_salt=salt,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )
    key_blocks_by_base(request)
    return request


def known(manager: KVCacheManager, request: Request) -> int:
    """How many of the request's leading tokens the cache has."""
    return manager.get_computed_blocks(request)[1]


def serve(manager: KVCacheManager, request: Request, answer: Sequence[int]) -> None:
    """What the scheduler does with a request: allocate for the pull, cache, then generate token by token, and free."""
    blocks, cached, _ = manager.get_computed_blocks(request)
    missing = base_kv_length(request.num_prompt_tokens) - cached
    if missing > 0:
        manager.allocate_slots(
            request,
            0,
            num_new_computed_tokens=cached,
            new_computed_blocks=blocks,
            num_external_computed_tokens=missing,
            delay_cache_blocks=True,
        )
        request.num_computed_tokens = cached + missing
        manager.cache_blocks(request, request.num_computed_tokens)
    else:
        manager.allocate_slots(request, 1, num_new_computed_tokens=cached, new_computed_blocks=blocks)
        request.num_computed_tokens = cached + 1
        request.append_output_token_ids(answer[0])
        answer = answer[1:]
    for token in answer:
        manager.allocate_slots(request, 1)
        request.num_computed_tokens += 1
        request.append_output_token_ids(token)
    manager.free(request)


@settings(max_examples=60, deadline=None)
@given(prompt=st.integers(1, 5 * BLOCK), answer=st.integers(1, 3 * BLOCK))
def test_a_next_turn_finds_the_prompt_but_not_the_answer(prompt: int, answer: int) -> None:
    manager, ids, new = make_manager(), list(range(prompt)), list(range(100, 100 + answer))
    serve(manager, make_request(ids), new)
    next_turn = make_request([*ids, *new, 7, 8, 9])
    assert known(manager, next_turn) == base_kv_length(prompt) // BLOCK * BLOCK


def test_without_the_guard_the_answer_would_be_found() -> None:
    manager, ids = make_manager(guarded=False), list(range(2 * BLOCK))
    serve(manager, make_request(ids), list(range(100, 100 + 2 * BLOCK)))
    assert known(manager, make_request([*ids, *range(100, 100 + 2 * BLOCK)])) > base_kv_length(2 * BLOCK)


def test_the_last_prompt_block_is_found_once_another_turn_pulled_it() -> None:
    """In the second turn the answer is base KV, too: the base has prefilled it."""
    manager, ids, new = make_manager(), list(range(2 * BLOCK)), list(range(100, 100 + 2 * BLOCK))
    serve(manager, make_request(ids), new)
    serve(manager, make_request([*ids, *new]), [5])
    assert known(manager, make_request([*ids, *new, 9])) == base_kv_length(4 * BLOCK) // BLOCK * BLOCK


def test_a_request_without_base_kv_leaves_nothing() -> None:
    manager, ids = make_manager(holds_base_kv=False), list(range(3 * BLOCK))
    serve(manager, make_request(ids), [5, 6])
    assert known(manager, make_request(ids)) == 0


def test_adapters_share_the_blocks_of_the_base() -> None:
    manager, ids = make_manager(), list(range(3 * BLOCK + 1))
    serve(manager, make_request(ids, adapter="planner"), [5])
    for adapter in ("planner", "critic", None):
        assert known(manager, make_request(ids, adapter=adapter)) == 3 * BLOCK


def test_vllm_would_key_blocks_by_adapter() -> None:
    """Why `key_blocks_by_base` is there; when this fails, it may go."""
    request = partial(
        Request, "id", list(range(BLOCK)), SamplingParams(), None, block_hasher=get_request_block_hasher(BLOCK, sha256)
    )
    init_none_hash(sha256)
    assert request(lora_request=LoRARequest("a", 1, "/a")).block_hashes != request().block_hashes


def test_the_adapter_itself_stays() -> None:
    assert make_request([1, 2, 3], adapter="planner").lora_request.lora_name == "planner"


@pytest.mark.parametrize("adapter", [None, "planner"])
def test_salts_keep_tenants_apart(adapter: str | None) -> None:
    """Also where a block's key is made anew, without its adapter."""
    manager, ids = make_manager(), list(range(3 * BLOCK + 1))
    serve(manager, make_request(ids, adapter=adapter, salt="one tenant"), [5])
    for other in ("another", None):
        assert known(manager, make_request(ids, adapter=adapter, salt=other)) == 0
    assert known(manager, make_request(ids, adapter=adapter, salt="one tenant")) == 3 * BLOCK


def test_all_of_vllms_ways_to_cache_go_through_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there another, own KV could get past the guard."""
    manager = make_manager()
    monkeypatch.setattr(manager.coordinator, "cache_blocks", lambda *args: None)
    ids = list(range(3 * BLOCK))
    serve(manager, make_request(ids), list(range(100, 100 + 2 * BLOCK)))
    assert known(manager, make_request([*ids, *range(100, 110)])) == 0
