"""What the reference answers: to single prompts, and to the calls of random sessions."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoTokenizer

from experiments.random_sessions import Session
from prefillshare.module import DecodeModule
from prefillshare.training.conversation import render_prompt
from prefillshare.training.reference import generate, generate_batch, load_base, load_decode

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_every_core(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results in order. A single token is hardly faster on two cores than on one, so that items side by side, each
    on a core of its own, take half the time."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))


@dataclass(frozen=True)
class Call:
    """One call of a session, and the reference's answer."""

    model: str
    prompt: list[int]
    answer: list[int]


class Reference:
    """The base and the decode modules in Transformers, float32."""

    def __init__(self, base: Path, modules: Mapping[str, DecodeModule]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._base = load_base(base)
        self._modules = {name: load_decode(module, base) for name, module in modules.items()}
        self._scripts: dict[Session, list[Call]] = {}

    def scripts(self, sessions: Sequence[Session]) -> list[list[Call]]:
        """The calls of every session, each session computed once."""
        new = list(dict.fromkeys(session for session in sessions if session not in self._scripts))
        self._scripts |= zip(new, on_every_core(self._script, new), strict=True)
        return [self._scripts[session] for session in sessions]

    def _script(self, session: Session) -> list[Call]:
        """Turn by turn; the base computes only what a turn adds to the context."""
        calls: list[Call] = []
        known = None
        for turn in session.turns:
            context = calls[-1].prompt + calls[-1].answer if calls else []
            prompt = context[: len(context) - turn.dropped] + list(turn.new)
            (answer,), known = generate_batch(
                self._base, self._modules[turn.model], [prompt], max_new_tokens=turn.answer_tokens, known=known
            )
            calls.append(Call(turn.model, prompt, answer))
        return calls

    def tokens(self, model: str, prompt: Sequence[int], count: int, end: Collection[int] = frozenset()) -> list[int]:
        """What the model answers to a prompt, up to a token of `end`: by the plain reference, one prompt alone, which
        has the last word."""
        return generate(self._base, self._modules[model], prompt, max_new_tokens=count, eos_token_ids=end)

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], count: int) -> str:
        """The text that the model answers a conversation with."""
        tokens = self.tokens(model, render_prompt(messages, self.tokenizer), count, {self.tokenizer.eos_token_id})
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def tokens_on_own_kv(self, model: str, prompt: Sequence[int], count: int) -> list[int]:
        """What it would answer were the prompt's KV the decode module's own."""
        module = self._modules[model]
        return generate(module, module, prompt, max_new_tokens=count)

    def answer(self, call: Call) -> list[int]:
        return self.tokens(call.model, call.prompt, len(call.answer))

    def answer_on_own_kv(self, call: Call) -> list[int]:
        return self.tokens_on_own_kv(call.model, call.prompt, len(call.answer))
