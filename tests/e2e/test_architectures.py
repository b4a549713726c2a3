"""Invariant 1 for the other architectures, small and random; by default for Gemma 3, whose layers differ most.

Some of the layers of a Gemma have an attention window. vLLM has to keep the KV that has left it beside the rest, or
nothing could be handed over, and every layer has to attend to as much of it as in training. `--architectures all` adds
what differs elsewhere: soft caps of the scores (Gemma 2), biases (Qwen 2), norms of queries and keys (Qwen 3).
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prefillshare.config import BaseConfig, Deployment, ModuleConfig
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.module import DecodeModule
from prefillshare.training.reference import generate, load_base, load_decode
from tests.e2e.conftest import BLOCK_SIZE, IN_STEPS, MAX_MODEL_LEN, train_module, worker_config
from tests.e2e.support import complete, decode, free_ports, prefill, running
from tests.e2e.test_exactness import TEXT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

WINDOW = 40  # no multiple of the block size
NEW_TOKENS = 16

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
_GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": WINDOW}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
_CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0}  # so low that leaving them out would show

# Of each architecture a random model, given the fields that all have in common.
MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "gemma2": lambda **fields: Gemma2ForCausalLM(Gemma2Config(**fields, **_HEADS, **_GEMMA, **_CAPS)),
    "gemma3": lambda **fields: Gemma3ForCausalLM(Gemma3TextConfig(**fields, **_HEADS, **_GEMMA, layer_types=_KINDS)),
    "mistral": lambda **fields: MistralForCausalLM(MistralConfig(**fields, **_HEADS, sliding_window=None)),
    # vLLM takes no other size of a Qwen 2's heads than hidden_size over their number.
    "qwen2": lambda **fields: Qwen2ForCausalLM(Qwen2Config(**fields, num_attention_heads=2, num_key_value_heads=1)),
    "qwen3": lambda **fields: Qwen3ForCausalLM(Qwen3Config(**fields, **_HEADS)),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "architecture" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--architectures")
        names = list(MODELS) if asked == "all" else asked.split(",")
        if unknown := [name for name in names if name not in MODELS]:
            raise pytest.UsageError(f"--architectures: {unknown[0]!r} is none of {', '.join(MODELS)}; or say all")
        metafunc.parametrize("architecture", names, scope="module")


@pytest.fixture(scope="module")
def small_base(architecture: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the architecture with the tokenizer of the base of the other tests."""
    folder = tmp_path_factory.mktemp(architecture)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    model = MODELS[architecture](
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=len(_KINDS),
        max_position_embeddings=MAX_MODEL_LEN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # A new model attends to all positions nearly alike and has no biases: caps and biases left out would not show.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.mul_(8)
    model.save_pretrained(folder)
    for file in base.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def module(architecture: str, small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodeModule:
    return train_module(small_base, tmp_path_factory.mktemp(f"of_{architecture}"), learning_rate=1e-3)


@pytest.fixture(scope="module")
def pair(
    small_base: Path, module: DecodeModule, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorkerSpec, WorkerSpec]]:
    """A prefill and a decode worker."""
    deployment = Deployment(
        bases=(BaseConfig(path=small_base, name="small"),),
        modules=(ModuleConfig(name="module", path=module.path),),
        workers=worker_config(free_ports(4), 2),
    )
    prefills, decodes = plan_workers(deployment)
    prefills = replace(prefills, engine_args=(*prefills.engine_args, *IN_STEPS))
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
    small_base: Path, module: DecodeModule, pair: tuple[WorkerSpec, WorkerSpec], prompts: dict[str, list[int]]
) -> None:
    prefills, decodes = pair
    base_model, decode_model = load_base(small_base), load_decode(module, small_base)

    def answers(prefilled_by: Any) -> dict[str, list[int]]:
        return {
            name: generate(prefilled_by, decode_model, ids, max_new_tokens=NEW_TOKENS) for name, ids in prompts.items()
        }

    served = {}
    for name, ids in prompts.items():
        handoff = prefill(prefills, ids)["kv_transfer_params"]
        served[name] = decode(decodes, ids, handoff, max_tokens=NEW_TOKENS)
    expected = answers(base_model)
    assert served == expected

    # The controls: other KV, or no windows, would be seen.
    self_prefilled = answers(decode_model)
    assert sum(self_prefilled[name] != expected[name] for name in prompts) >= len(prompts) // 2
    if "sliding_attention" in (getattr(base_model.config, "layer_types", None) or ()):
        for model in (base_model, decode_model):
            model.config.sliding_window = MAX_MODEL_LEN
        unwindowed = answers(base_model)
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
