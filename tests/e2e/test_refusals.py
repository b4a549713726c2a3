"""Whatever reaches a worker: it never prefills with a decode module's weights, and it lives on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from prefillshare.engine.handoff import STATUS
from prefillshare.engine.worker import ServedModel
from prefillshare.identity import compute_identity
from tests.e2e.conftest import BLOCK_SIZE, MAX_MODEL_LEN, Workers
from tests.e2e.failing import kv_usage, wait_until
from tests.e2e.support import REMOTE_DECODE, complete, decode, free_ports, healthy, prefill, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PROMPT = list(range(1000, 1000 + BLOCK_SIZE + 5))


def handoff(workers: Workers, prompt: list[int] = PROMPT) -> dict[str, Any]:
    params: dict[str, Any] = prefill(workers.prefill, prompt)["kv_transfer_params"]
    return params


def serves(workers: Workers) -> bool:
    return len(decode(workers.full, PROMPT, handoff(workers), max_tokens=2)) == 2


def refused(response: httpx.Response) -> str:
    """The reason, told in the status, the header and the body alike."""
    error = response.json()["error"]
    assert error["type"] == "handoff_refused", response.text
    assert response.status_code == STATUS[error["code"]]
    assert response.headers["x-prefillshare-refusal"] == error["code"]
    return str(error["code"])


def test_a_decode_worker_refuses_a_request_that_no_prefill_worker_saw(workers: Workers) -> None:
    for params in (None, {}, REMOTE_DECODE):
        assert refused(complete(workers.full, PROMPT, max_tokens=2, kv_transfer_params=params)) == "no_handoff"
    assert serves(workers)


# tests/engine/test_connector.py has every field and change. These two would do harm further in: the first raises where
# the engine's loop looks it up, the second would have the prompt's blocks read in another order.
@pytest.mark.parametrize("broken", ["malformed_handoff", "forged_handoff"])
def test_a_decode_worker_survives_broken_transfer_parameters(workers: Workers, broken: str) -> None:
    params = handoff(workers)
    if broken == "malformed_handoff":
        params["remote_engine_id"] = ["a list cannot be a dictionary's key"]
    else:
        assert len(params["remote_block_ids"][0]) > 1
        params["remote_block_ids"][0].reverse()
    assert refused(complete(workers.full, PROMPT, max_tokens=2, kv_transfer_params=params)) == broken
    assert serves(workers)


def test_a_handoff_serves_one_request(workers: Workers) -> None:
    params = handoff(workers)
    assert len(decode(workers.full, PROMPT, params, max_tokens=2)) == 2
    assert refused(complete(workers.full, PROMPT, max_tokens=2, kv_transfer_params=params)) == "used_handoff"
    assert serves(workers)


def test_a_handoff_serves_its_own_prompt_only(workers: Workers) -> None:
    for prompt in (PROMPT[:-1], [*PROMPT[:-1], 7]):
        params = handoff(workers)
        assert refused(complete(workers.full, prompt, max_tokens=2, kv_transfer_params=params)) == "wrong_prompt"
    assert serves(workers)


def test_prompt_logprobs_are_refused_since_vllm_would_compute_the_prompt(workers: Workers) -> None:
    response = complete(workers.full, PROMPT, max_tokens=2, prompt_logprobs=1, kv_transfer_params=handoff(workers))
    assert refused(response) == "local_prefill_asked"
    assert serves(workers)


def test_a_worker_refuses_kv_of_another_base(workers: Workers) -> None:
    response = complete(workers.stranger, PROMPT, max_tokens=2, kv_transfer_params=handoff(workers))
    assert refused(response) == "another_base"
    wait_until(lambda: not kv_usage(workers.stranger), 10.0, "an empty KV pool")
    assert healthy(workers.stranger)
    assert serves(workers)


def test_a_prefill_worker_takes_no_kv(workers: Workers) -> None:
    response = complete(workers.prefill, PROMPT, max_tokens=2, kv_transfer_params=handoff(workers))
    assert refused(response) == "malformed_handoff"
    assert serves(workers)


def test_a_prefill_worker_survives_tokens_that_its_tokenizer_knows_and_its_model_does_not(
    workers: Workers, base: Path, tmp_path: Path
) -> None:
    """As with the image tokens of Gemma 3's text models: computed, one would end the engine."""
    known = 64 * BLOCK_SIZE  # of the tokenizer's; vLLM rounds an embedding up to multiples of 64
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen3Config(
        vocab_size=known, num_hidden_layers=1, head_dim=32, max_position_embeddings=MAX_MODEL_LEN, **size
    )
    Qwen3ForCausalLM(model).save_pretrained(tmp_path / "base")
    for file in base.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, tmp_path / "base")
    ports = free_ports(2)
    small = replace(
        workers.prefill,
        name="small",
        model=tmp_path / "base",
        base=tmp_path / "base",
        base_identity=compute_identity(tmp_path / "base").digest,
        models=(ServedModel("small"),),
        port=ports,
        side_channel_port=ports + 1,
        engine_args=(),
    )
    with running([small], tmp_path):
        for prompt in ([known], [*PROMPT, known], [*PROMPT, known, 7]):
            refusal = complete(small, prompt, max_tokens=1, kv_transfer_params=REMOTE_DECODE)
            assert refused(refusal) == "unknown_token"
            assert f"token {known}," in refusal.json()["error"]["message"]
        assert prefill(small, [*PROMPT, known - 1])["kv_transfer_params"]


def test_a_structure_that_would_not_be_enforced_is_refused(workers: Workers) -> None:
    """On vLLM's own choice of backends it would be let through, and then be passed over by the one that is running."""
    schema = {"allOf": [{"type": "string"}, {"enum": ["yes", "no"]}]}
    response = complete(
        workers.full, PROMPT, max_tokens=2, kv_transfer_params=handoff(workers), structured_outputs={"json": schema}
    )
    assert response.status_code == 400
    assert "not supported by xgrammar" in response.json()["error"]["message"]
    assert serves(workers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_no_answer_can_follow_is_refused_as_the_clients_mistake(workers: Workers, stream: bool) -> None:
    endless = {"grammar": "root ::= root"}
    response = complete(
        workers.full,
        PROMPT,
        max_tokens=2,
        kv_transfer_params=handoff(workers),
        structured_outputs=endless,
        stream=stream,
    )
    if stream:
        assert '"code": "grammar_failed"' in response.text
    else:
        assert refused(response) == "grammar_failed"
    assert serves(workers)
