"""What the reference answers to the calls of random sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.random_sessions import Session
from prefillshare.module import DecodeModule
from prefillshare.training.reference import generate, generate_batch, load_base, load_decode

_BATCH = 8  # prompts a pass of the reference


@dataclass(frozen=True)
class Call:
    """One call of a session, and the reference's answer."""

    model: str
    prompt: list[int]
    answer: list[int]


class Reference:
    """The base and the decode modules in Transformers, float32."""

    def __init__(self, base: Path, modules: Mapping[str, DecodeModule]) -> None:
        self._base = load_base(base)
        self._modules = {name: load_decode(module, base) for name, module in modules.items()}
        self._scripts: dict[Session, list[Call]] = {}

    def scripts(self, sessions: Sequence[Session]) -> list[list[Call]]:
        """The calls of every session, each session computed once."""
        new = {session: list[Call]() for session in sessions if session not in self._scripts}
        for turn in range(max((len(session.turns) for session in new), default=0)):
            self._compute(turn, {session: script for session, script in new.items() if turn < len(session.turns)})
        self._scripts |= new
        return [self._scripts[session] for session in sessions]

    def _compute(self, turn: int, scripts: dict[Session, list[Call]]) -> None:
        """Adds one turn to the scripts. No call depends on another here, so that they can be computed in batches."""
        prompts = {session: _prompt(session, turn, script) for session, script in scripts.items()}
        for model, module in self._modules.items():
            calling = [session for session in scripts if session.turns[turn].model == model]
            calling.sort(key=lambda session: len(prompts[session]))  # alike in length: less padding
            for first in range(0, len(calling), _BATCH):
                batch = calling[first : first + _BATCH]
                most = max(session.turns[turn].answer_tokens for session in batch)
                asked = [prompts[session] for session in batch]
                answers, _ = generate_batch(self._base, module, asked, max_new_tokens=most)
                for session, prompt, answer in zip(batch, asked, answers, strict=True):
                    scripts[session].append(Call(model, prompt, answer[: session.turns[turn].answer_tokens]))

    def answer(self, call: Call) -> list[int]:
        """By the plain reference, one prompt alone: it has the last word."""
        return generate(self._base, self._modules[call.model], call.prompt, max_new_tokens=len(call.answer))

    def answer_on_own_kv(self, call: Call) -> list[int]:
        """What the call would get were the prompt's KV the decode module's own."""
        module = self._modules[call.model]
        return generate(module, module, call.prompt, max_new_tokens=len(call.answer))


def _prompt(session: Session, turn: int, calls: list[Call]) -> list[int]:
    """The context after the calls so far, with what the turn takes back and adds."""
    context = calls[-1].prompt + calls[-1].answer if calls else []
    return context[: len(context) - session.turns[turn].dropped] + list(session.turns[turn].new)
