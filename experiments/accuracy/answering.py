"""Greedy answers of one system to a family's items, and which of them are right."""

import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.progress import track
from transformers import AutoTokenizer, PreTrainedModel

from experiments.accuracy.items import Family, Item
from experiments.accuracy.scorers import is_right
from experiments.accuracy.training import is_adapter
from prefillshare.hardware import preferred_dtype
from prefillshare.module import load_module
from prefillshare.training.conversation import render_prompt
from prefillshare.training.reference import generate_batch, load_base, load_decode

_BATCH = 25


def score(
    label: str, family: Family, items: list[Item], prefill: Path, decode: Path, answers_to: Path
) -> dict[str, Any]:
    """Prompts are prefilled by one checkpoint's weights and answered by the other's. Writes the answers, to read."""
    started = time.monotonic()
    dtype = getattr(torch, preferred_dtype())
    tokenizer = AutoTokenizer.from_pretrained(prefill)
    prefill_model = load_base(prefill, dtype=dtype)
    decode_model: PreTrainedModel | PeftModel = prefill_model
    if is_adapter(decode):
        decode_model = load_decode(load_module(decode), prefill, dtype=dtype)
    elif decode != prefill:
        decode_model = load_base(decode, dtype=dtype)
    prompts = [render_prompt(item.prompt, tokenizer) for item in items]
    order = sorted(range(len(items)), key=lambda number: len(prompts[number]))  # little padding
    answers = [""] * len(items)
    known = None
    starts = range(0, len(items), _BATCH)
    for start in track(starts, description=label):
        batch = order[start : start + _BATCH]
        outputs, known = generate_batch(
            prefill_model,
            decode_model,
            [prompts[number] for number in batch],
            max_new_tokens=family.max_new_tokens,
            eos_token_ids={tokenizer.eos_token_id},
            known=known,
        )
        for number, tokens in zip(batch, outputs, strict=True):
            answers[number] = str(tokenizer.decode(tokens, skip_special_tokens=True))
    right = "".join("01"[is_right(family.scorer, answer, item)] for answer, item in zip(answers, items, strict=True))
    answers_to.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{bit}\n< {item.answer}\n> {answer}\n" for bit, item, answer in zip(right, items, answers, strict=True)]
    answers_to.write_text("\n".join(lines))
    return {"right": right, "seconds": round(time.monotonic() - started, 1)}
