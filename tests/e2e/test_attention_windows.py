"""Invariant 1 for a model whose layers have attention windows, some of them: Gemma 3, small and random.

vLLM has to keep the KV that has left the window beside the rest, or nothing could be handed over, and every layer has
to attend to as much of it as in training.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from prefillshare.config import BaseConfig, Deployment, ModuleConfig
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.module import DecodeModule
from prefillshare.training.reference import generate, load_base, load_decode
from tests.e2e.conftest import BLOCK_SIZE, MAX_MODEL_LEN, train_module, worker_config
from tests.e2e.support import complete, decode, free_ports, prefill, running
from tests.e2e.test_exactness import TEXT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

WINDOW = 40  # no multiple of the block size
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def gemma(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3 with the tokenizer of the base of the other tests."""
    folder = tmp_path_factory.mktemp("gemma")
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=MAX_MODEL_LEN,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    for file in base.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def module(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodeModule:
    return train_module(gemma, tmp_path_factory.mktemp("of_gemma"), learning_rate=1e-3)


@pytest.fixture(scope="module")
def pair(
    gemma: Path, module: DecodeModule, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorkerSpec, WorkerSpec]]:
    """A prefill and a decode worker."""
    deployment = Deployment(
        bases=(BaseConfig(path=gemma, name="gemma"),),
        modules=(ModuleConfig(name="windowed", path=module.path),),
        workers=worker_config(free_ports(4), 2),
    )
    prefills, decodes = plan_workers(deployment)
    with running([prefills, decodes], tmp_path_factory.mktemp("logs")):
        yield prefills, decodes


@pytest.fixture(scope="module")
def prompts(base: Path) -> dict[str, list[int]]:
    text = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    return {
        "within the window": text[3:23],
        "as long as the window": text[8 : 8 + WINDOW],
        "a token more than the window": text[12 : 13 + WINDOW],
        "several windows": text[: 3 * WINDOW + 5],
        "several blocks": text[20 : 20 + 4 * BLOCK_SIZE],
        "a known start beyond the window": text[: 3 * BLOCK_SIZE] + text[7:25],
    }


def test_every_token_equals_the_reference(
    gemma: Path, module: DecodeModule, pair: tuple[WorkerSpec, WorkerSpec], prompts: dict[str, list[int]]
) -> None:
    prefills, decodes = pair
    base_model, decode_model = load_base(gemma), load_decode(module, gemma)
    served, expected, self_prefilled = {}, {}, {}
    for name, ids in prompts.items():
        handoff = prefill(prefills, ids)["kv_transfer_params"]
        served[name] = decode(decodes, ids, handoff, max_tokens=NEW_TOKENS)
        expected[name] = generate(base_model, decode_model, ids, max_new_tokens=NEW_TOKENS)
        self_prefilled[name] = generate(decode_model, decode_model, ids, max_new_tokens=NEW_TOKENS)
    assert served == expected

    # The controls: other KV, or no windows, would be seen.
    for model in (base_model, decode_model):
        model.config.sliding_window = MAX_MODEL_LEN
    unwindowed = {
        name: generate(base_model, decode_model, ids, max_new_tokens=NEW_TOKENS) for name, ids in prompts.items()
    }
    assert sum(self_prefilled[name] != expected[name] for name in prompts) >= len(prompts) // 2
    longer = {name for name, ids in prompts.items() if len(ids) > WINDOW}
    assert {name for name in prompts if unwindowed[name] != expected[name]} >= longer


def test_a_known_start_is_found_beyond_the_window(
    pair: tuple[WorkerSpec, WorkerSpec], prompts: dict[str, list[int]]
) -> None:
    """All of a prompt stays in both caches, also what only the layers without a window still look at."""
    prefills, decodes = pair
    start = [11, *prompts["several windows"]]  # a first token that no other test has, so that nothing is known of it
    known = len(start) // BLOCK_SIZE * BLOCK_SIZE
    for ids, cached in ((start, 0), (start + prompts["within the window"], known)):
        leg1 = prefill(prefills, ids)
        assert leg1["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
        leg2 = complete(decodes, ids, max_tokens=2, kv_transfer_params=leg1["kv_transfer_params"]).json()
        assert leg2["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
