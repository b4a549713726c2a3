from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefillshare.identity import BaseMismatch, compute_identity
from prefillshare.module import BaseReference, Manifest, load_module, save_manifest
from prefillshare.training.reference import generate, generate_batch, load_base, load_decode
from tests.training.tiny import ARCHITECTURES, ragged_examples, save_base, tiny_model

PROMPTS = [example.ids[: example.spans[0][0]] for example in ragged_examples(start=0)]


def plain_generate(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """Without any cache: the whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_a_decode_module_equal_to_the_base_generates_as_the_base_does(architecture: str, prompt: list[int]) -> None:
    model = tiny_model(architecture=architecture)
    assert generate(model, model, prompt, max_new_tokens=12) == plain_generate(model, prompt, 12)


@torch.no_grad()
def test_the_split_is_between_the_last_prompt_token_and_the_one_before() -> None:
    """KV stitched by hand: base for 0..n-2, decode module for n-1."""
    base, decode = tiny_model(0), tiny_model(1)
    prompt = [3, 1, 4, 1, 5]
    cache = base(input_ids=torch.tensor([prompt[:4]]), use_cache=True).past_key_values
    logits = decode(input_ids=torch.tensor([prompt[4:]]), past_key_values=cache).logits
    assert generate(base, decode, prompt, max_new_tokens=1) == [int(logits[0, -1].argmax())]


def test_base_kv_makes_a_difference() -> None:
    """Without this the other tests could pass by ignoring the base."""
    base, decode = tiny_model(0), tiny_model(1)
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 2]
    on_base = [generate(base, decode, prompt, max_new_tokens=8) for prompt in prompts]
    on_own = [generate(decode, decode, prompt, max_new_tokens=8) for prompt in prompts]
    assert all(a != b for a, b in zip(on_base, on_own, strict=True))


def test_generation_ends_with_an_end_token() -> None:
    base, decode = tiny_model(0), tiny_model(1)
    tokens = generate(base, decode, PROMPTS[1], max_new_tokens=8)
    stop = tokens[3]
    expected = tokens[: tokens.index(stop) + 1]
    assert generate(base, decode, PROMPTS[1], max_new_tokens=8, eos_token_ids={stop}) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_generates_what_its_prompts_do_alone(architecture: str) -> None:
    base, decode = tiny_model(0, architecture), tiny_model(1, architecture)
    prompts = {
        start: [example.ids[: example.spans[0][0]] for example in ragged_examples(start=start)] for start in (0, 3)
    }
    alone = {
        start: [generate(base, decode, prompt, max_new_tokens=10) for prompt in prompts[start]] for start in prompts
    }
    known = None
    for start in (0, 3, 3):
        for eos in (frozenset[int](), {alone[start][0][4]}, {alone[start][2][4]}):
            expected = [until(eos, tokens) for tokens in alone[start]]
            outputs, known = generate_batch(
                base, decode, prompts[start], max_new_tokens=10, eos_token_ids=eos, known=known
            )
            assert outputs == expected


def until(eos: Collection[int], tokens: list[int]) -> list[int]:
    return next((tokens[: at + 1] for at, token in enumerate(tokens) if token in eos), tokens)


def test_an_empty_prompt_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, model, [], max_new_tokens=1)


def saved_module(folder: Path, base: Path, model: torch.nn.Module, kind: str) -> None:
    model.save_pretrained(folder)
    reference = BaseReference(name="base", identity=compute_identity(base))
    save_manifest(folder, Manifest(name="m", kind=kind, base=reference))


def test_full_and_lora_modules_load_as_they_were_saved(tmp_path: Path) -> None:
    base_folder = save_base(tmp_path / "base")
    lora = get_peft_model(load_base(base_folder), LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(5)
    for name, weight in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    base = load_base(base_folder)
    for kind, model in (("full", tiny_model(1)), ("lora", lora.eval())):
        saved_module(tmp_path / kind, base_folder, model, kind)
        loaded = load_decode(load_module(tmp_path / kind), base_folder)
        prompt = PROMPTS[2]
        assert generate(base, loaded, prompt, max_new_tokens=8) == generate(base, model, prompt, max_new_tokens=8)
        assert generate(base, loaded, prompt, max_new_tokens=8) != generate(base, base, prompt, max_new_tokens=8)
        assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_module_of_another_base_is_refused(tmp_path: Path) -> None:
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", tiny_model(3))
    saved_module(tmp_path / "module", base, tiny_model(1), "full")
    with pytest.raises(BaseMismatch):
        load_decode(load_module(tmp_path / "module"), other)
