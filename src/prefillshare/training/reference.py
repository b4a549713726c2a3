"""Exact generation in Transformers: the oracle that training and serving are checked against.

`generate` is written for one prompt at a time with as little machinery as possible, and shares no code with the
trainer's base pass. `generate_batch` is the fast variant for scoring many items; a test holds the two together.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from prefillshare.module import DecodeModule, base_kv_length, verify_module
from prefillshare.training.base_cache import SharedKV, TokenIds, base_pass
from prefillshare.training.masks import Columns, conversation_mask
from prefillshare.training.models import load_model


def load_base(checkpoint: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint as a frozen model in evaluation mode."""
    return load_model(checkpoint, dtype=dtype).requires_grad_(False).eval()


def load_decode(module: DecodeModule, base: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel | PeftModel:
    """The decode module as a frozen model; a LoRA module gets its own copy of the base's weights underneath.

    Raises:
        BaseMismatch: the module was trained on another base.
    """
    verify_module(module, base)
    if module.kind == "full":
        return load_base(module.path, dtype=dtype)
    return PeftModel.from_pretrained(load_base(base, dtype=dtype), module.path).eval()


@torch.no_grad()
def generate(
    base: PreTrainedModel,
    decode: PreTrainedModel | PeftModel,
    prompt_ids: TokenIds,
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = frozenset(),
) -> list[int]:
    """Greedy tokens of `decode` on base KV for positions 0..n-2 of the n-token prompt.

    The end-of-sequence token is the last one returned when it was generated, as in vLLM's `token_ids`.
    Use float32 models for equality checks: in bfloat16 the argmax can flip between implementations.

    Raises:
        ValueError: the prompt is empty.
    """
    split = base_kv_length(len(prompt_ids))
    cache = DynamicCache()  # without the config, so that models with attention windows keep all of the base KV
    if split:
        ids = torch.tensor([prompt_ids[:split]], device=base.device)
        base(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)  # of which none is used
    tokens: list[int] = []
    current = prompt_ids[split]
    while len(tokens) < max_new_tokens:
        ids = torch.tensor([[current]], device=decode.device)
        logits = decode(input_ids=ids, past_key_values=cache, use_cache=True).logits
        current = int(logits[0, -1].argmax())
        tokens.append(current)
        if current in eos_token_ids:
            break
    return tokens


@torch.no_grad()
def generate_batch(
    base: PreTrainedModel,
    decode: PreTrainedModel | PeftModel,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = frozenset(),
    known: SharedKV | None = None,
) -> tuple[list[list[int]], SharedKV]:
    """`generate` for several prompts at once; what all prompts start with is prefilled once.

    Returns the tokens by prompt, and the KV of the shared start, to be passed as `known` with the next batch.
    """
    splits = [base_kv_length(len(prompt)) for prompt in prompts]
    kv = base_pass(base, [[prompt[:split]] for prompt, split in zip(prompts, splits, strict=True)], known)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(kv.layers):
        cache.update(keys, values, layer)
    last = [prompt[split] for prompt, split in zip(prompts, splits, strict=True)]
    outputs = greedy_tokens(
        decode, cache, kv.columns, last, splits, max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids
    )
    return outputs, kv.shared


@torch.no_grad()
def greedy_tokens(
    decode: PreTrainedModel | PeftModel,
    cache: Cache,
    seen: Columns,
    last: Sequence[int],
    splits: Sequence[int],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
) -> list[list[int]]:
    """Greedy tokens by row, the end-of-sequence token included.

    Args:
        cache: KV of every prompt but its last token, which grows.
        seen: what its columns hold, one conversation a row.
        last: each prompt's last token, `splits` its position.
    """
    rows = len(last)
    new = Columns(torch.zeros(rows, 1, dtype=torch.long), torch.tensor(splits).unsqueeze(1)).to(decode.device)
    current = torch.tensor(last, device=decode.device).unsqueeze(1)
    outputs: list[list[int]] = [[] for _ in range(rows)]
    running = set(range(rows))
    for _ in range(max_new_tokens):
        logits = decode(
            input_ids=current,
            attention_mask=conversation_mask(decode, new, seen),
            position_ids=new.positions,
            past_key_values=cache,
            use_cache=True,
        ).logits
        current = logits[:, -1:].argmax(dim=-1)
        seen, new = Columns.concatenated(seen, new), Columns(new.owners, new.positions + 1)
        for row in sorted(running):
            token = int(current[row, 0])
            outputs[row].append(token)
            if token in eos_token_ids:
                running.remove(row)
        if not running:
            break
    return outputs
