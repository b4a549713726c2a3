"""What the reference answers to the calls of sessions, and a client that makes these calls on real workers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from prefillshare.engine.worker import WorkerSpec
from prefillshare.module import DecodeModule
from prefillshare.training.reference import generate, generate_batch, load_base, load_decode
from tests.e2e.sessions import Session
from tests.e2e.support import complete, prefill, url

REFUSAL = "x-prefillshare-refusal"

# A 503 with one of these reasons says that the prompt's KV is lost: a router prefills again and retries.
LOST_KV = {"preempted", "lease_expired", "pull_failed"}
MOST_TRIES = 6

_BATCH = 8  # prompts a pass of the reference


@dataclass(frozen=True)
class Call:
    """One call of a session, and the reference's answer."""

    model: str
    prompt: list[int]
    answer: list[int]


class Reference:
    """The base and the decode modules in Transformers, float32."""

    def __init__(self, base: Path, modules: dict[str, DecodeModule]) -> None:
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


class KnownBlocks:
    """Which blocks of base KV a worker holds, were nothing ever evicted. Threads may share it."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._starts: set[tuple[int, ...]] = set()  # prompts' starts of whole blocks

    def reusable(self, prompt: list[int]) -> int:
        """Blocks of the prompt that need not come again; not the one of the last token, which is computed anyway."""
        count = 0
        for start in self._whole_blocks(prompt[:-1]):
            if start not in self._starts:
                break
            count += 1
        return count

    def add(self, prompt: list[int]) -> None:
        self._starts.update(self._whole_blocks(prompt[:-1]))

    def _whole_blocks(self, tokens: list[int]) -> Iterator[tuple[int, ...]]:
        for end in range(self._block_size, len(tokens) + 1, self._block_size):
            yield tuple(tokens[:end])


@dataclass
class Played:
    """What came of a session's calls."""

    served: list[list[int]] = field(default_factory=list)  # the tokens by call
    lost: Counter[str] = field(default_factory=Counter)  # how often KV was lost and prefilled again, by reason
    evicted: int = 0  # blocks that the prefill worker computed although it had computed them before

    def wrong(self, script: list[Call]) -> list[int]:
        """The numbers of the calls whose tokens are not those of the script."""
        return [number for number, call in enumerate(script) if self.served[number] != call.answer]


class Player:
    """Makes calls as the router makes them: two legs, and both again when the KV was lost in between."""

    def __init__(self, prefill: WorkerSpec, decode: dict[str, WorkerSpec]) -> None:
        self._prefill = prefill
        self._decode = decode  # by the name of the model
        self._prefilled = KnownBlocks(prefill.block_size)

    def play(self, script: list[Call]) -> Played:
        """
        Raises:
            AssertionError: a worker refused a call, and not since KV was lost; or KV was lost MOST_TRIES times.
        """
        played = Played()
        for call in script:
            played.served.append(self._answer(call, played))
        return played

    def _answer(self, call: Call, played: Played) -> list[int]:
        for _ in range(MOST_TRIES):
            known = self._prefilled.reusable(call.prompt)
            leg1 = prefill(self._prefill, call.prompt)
            self._prefilled.add(call.prompt)
            cached = leg1["usage"]["prompt_tokens_details"]["cached_tokens"] // self._prefill.block_size
            played.evicted += max(known - cached, 0)
            response = complete(
                self._decode[call.model],
                call.prompt,
                model=call.model,
                max_tokens=len(call.answer),
                kv_transfer_params=leg1["kv_transfer_params"],
            )
            if response.status_code == 200:
                tokens: list[int] = response.json()["choices"][0]["token_ids"]
                return tokens
            played.lost[_reason_of_loss(response)] += 1
        raise AssertionError(f"{call.model} lost the KV of {len(call.prompt)} tokens {MOST_TRIES} times: {played.lost}")


def _reason_of_loss(response: httpx.Response) -> str:
    reason = response.headers.get(REFUSAL, "")
    assert response.status_code == 503, response.text
    assert reason in LOST_KV, response.text
    return reason


def metric(spec: WorkerSpec, name: str) -> float:
    """A metric of the worker now, summed over its labels.

    Raises:
        KeyError: the worker does not report it.
    """
    text = httpx.get(f"{url(spec)}/metrics", timeout=30.0).text
    families = text_string_to_metric_families(text)
    values = [sample.value for family in families for sample in family.samples if sample.name == name]
    if not values:
        raise KeyError(f"{spec.name} reports no {name}")
    return sum(values)
