"""Whatever reaches a worker: it never prefills with a decode module's weights, and it lives on."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import BLOCK_SIZE, MAX_MODEL_LEN, SMALL_KV_BLOCKS, Workers
from tests.e2e.support import REMOTE_DECODE, complete, decode, healthy, prefill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PROMPT = list(range(1000, 1000 + BLOCK_SIZE + 5))


def handoff(workers: Workers, prompt: list[int] = PROMPT) -> dict[str, Any]:
    params: dict[str, Any] = prefill(workers.prefill, prompt)["kv_transfer_params"]
    return params


def serves(workers: Workers) -> bool:
    return len(decode(workers.full, PROMPT, handoff(workers), max_tokens=2)) == 2


def test_a_decode_worker_refuses_a_request_that_no_prefill_worker_saw(workers: Workers) -> None:
    for params in (None, {}, REMOTE_DECODE):
        response = complete(workers.full, PROMPT, max_tokens=2, kv_transfer_params=params)
        assert response.status_code == 500, f"{params}: {response.text}"
    assert serves(workers)


BROKEN = [
    {"remote_host": None},
    {"remote_port": "5600"},
    {"remote_engine_id": ["a list cannot be a dictionary's key"]},
    {"remote_block_ids": []},
    {"remote_block_ids": [["x", "y"]]},
    {"remote_block_ids": [[1]]},
    {"remote_request_id": None},
    {"remote_engine_id": "nobody"},
    {"tp_size": None},
    {"remote_num_tokens": len(PROMPT) + 1},
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_decode_worker_survives_broken_transfer_parameters(workers: Workers, broken: dict[str, Any]) -> None:
    response = complete(workers.full, PROMPT, max_tokens=2, kv_transfer_params=handoff(workers) | broken)
    assert response.status_code == 500, response.text
    assert serves(workers)


def test_a_handoff_serves_one_request(workers: Workers) -> None:
    params = handoff(workers)
    assert len(decode(workers.full, PROMPT, params, max_tokens=2)) == 2
    assert complete(workers.full, PROMPT, max_tokens=2, kv_transfer_params=params).status_code == 500
    assert serves(workers)


def test_a_handoff_serves_its_own_prompt_only(workers: Workers) -> None:
    params = handoff(workers)
    assert complete(workers.full, PROMPT[:-1], max_tokens=2, kv_transfer_params=params).status_code == 500
    assert serves(workers)


def test_prompt_logprobs_are_refused_since_vllm_would_compute_the_prompt(workers: Workers) -> None:
    response = complete(workers.full, PROMPT, max_tokens=2, prompt_logprobs=1, kv_transfer_params=handoff(workers))
    assert response.status_code == 500, response.text
    assert serves(workers)


def test_a_worker_refuses_kv_of_another_base(workers: Workers) -> None:
    response = complete(workers.stranger, PROMPT, max_tokens=2, kv_transfer_params=handoff(workers))
    assert response.status_code == 500, response.text
    assert healthy(workers.stranger)
    assert serves(workers)


def test_a_prefill_worker_takes_no_kv(workers: Workers) -> None:
    response = complete(workers.prefill, PROMPT, max_tokens=2, kv_transfer_params=handoff(workers))
    assert response.status_code == 500, response.text
    assert serves(workers)


def test_a_preempted_request_ends_with_an_error(workers: Workers) -> None:
    """Two answers that do not fit into the KV cache together: vLLM would recompute one prompt locally."""
    prompts = [list(range(start, start + 5 * BLOCK_SIZE + 1)) for start in (2000, 3000)]
    new_tokens = 4 * BLOCK_SIZE
    total_blocks = 2 * (5 + 4 + 1)
    assert total_blocks > SMALL_KV_BLOCKS
    assert len(prompts[0]) + new_tokens <= MAX_MODEL_LEN

    def call(prompt: list[int]) -> int:
        params = handoff(workers, prompt)
        return complete(workers.full, prompt, max_tokens=new_tokens, kv_transfer_params=params).status_code

    with ThreadPoolExecutor(2) as pool:
        statuses = sorted(pool.map(call, prompts))
    assert statuses == [200, 500]
    assert serves(workers)
