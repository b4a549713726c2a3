import random

import pytest
import torch
from transformers import DynamicCache

from prefillshare.evaluation.mixed import base_positions, generate_mixed
from prefillshare.training.reference import generate
from tests.training.tiny import ARCHITECTURES, tiny_model

NEW = 10


def ragged(seed: int, lengths: list[int], start: int = 0) -> list[list[int]]:
    """Random prompts whose first `start` tokens are the same."""
    draw = random.Random(seed)
    shared = [draw.randrange(256) for _ in range(start)]
    return [shared[:length] + [draw.randrange(256) for _ in range(length - start)] for length in lengths]


PROMPTS = ragged(0, [1, 12, 5, 9, 2, 7])
SHARED = ragged(1, [4, 12, 6, 9], start=3)


@torch.no_grad()
def straightforward(base: torch.nn.Module, decode: torch.nn.Module, prompt: list[int], share: float) -> list[int]:
    """One prompt, and one pass for each part of it."""
    cache = DynamicCache()
    split = base_positions(len(prompt), share)
    for model, part in ((base, prompt[:split]), (decode, prompt[split:-1])):
        if part:
            model(input_ids=torch.tensor([part]), past_key_values=cache, use_cache=True)
    tokens = [prompt[-1]]
    for _ in range(NEW):
        logits = decode(input_ids=torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[1:]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED, PROMPTS[:1]], ids=["ragged", "shared start", "one token"])
def test_share_1_is_serving_and_share_0_is_ordinary_decoding(architecture: str, prompts: list[list[int]]) -> None:
    base, decode = tiny_model(0, architecture), tiny_model(1, architecture)
    served = [generate(base, decode, prompt, max_new_tokens=NEW) for prompt in prompts]
    ordinary = [generate(decode, decode, prompt, max_new_tokens=NEW) for prompt in prompts]
    assert generate_mixed(base, decode, prompts, share=1, max_new_tokens=NEW) == served
    assert generate_mixed(base, decode, prompts, share=0, max_new_tokens=NEW) == ordinary


@pytest.mark.parametrize(
    ("architecture", "share"),
    # Every share for an architecture without attention windows and for one with them; one share for all.
    [(name, share) for name in ("llama", "gemma3") for share in (0.1, 0.25, 0.5, 0.75, 0.9)]
    + [(name, 0.5) for name in ARCHITECTURES if name not in ("llama", "gemma3")],
)
def test_in_between_a_batch_generates_what_its_prompts_do_alone(architecture: str, share: float) -> None:
    base, decode = tiny_model(0, architecture), tiny_model(1, architecture)
    expected = [straightforward(base, decode, prompt, share) for prompt in PROMPTS]
    assert generate_mixed(base, decode, PROMPTS, share=share, max_new_tokens=NEW) == expected


def test_every_share_makes_a_difference() -> None:
    """Without this the tests above could pass with shares that are ignored."""
    base, decode = tiny_model(0), tiny_model(1)
    prompts = [list(range(n, n + 30)) for n in range(6)]
    outputs = [generate_mixed(base, decode, prompts, share=s, max_new_tokens=NEW) for s in (0, 0.25, 0.5, 0.75, 1)]
    assert all(one != other for n, one in enumerate(outputs) for other in outputs[:n])


def test_the_share_is_of_the_positions_before_the_split() -> None:
    assert [base_positions(9, share) for share in (0, 0.25, 0.5, 1)] == [0, 2, 4, 8]
    assert base_positions(1, 1) == 0


def test_generation_ends_with_an_end_token() -> None:
    base, decode = tiny_model(0), tiny_model(1)
    alone = generate_mixed(base, decode, PROMPTS, share=0.5, max_new_tokens=NEW)
    stop = alone[2][4]
    expected = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in alone]
    assert generate_mixed(base, decode, PROMPTS, share=0.5, max_new_tokens=NEW, eos_token_ids={stop}) == expected


def test_an_empty_prompt_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="at least one token"):
        generate_mixed(model, model, [[1], []], share=0.5, max_new_tokens=1)
