"""Sessions as the simulation sees them: lengths, and what a prompt has in common with others."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefillshare.router.placement.chunks import Chain
from prefillshare.simulate.cache import Stretch
from prefillshare.workloads.session import Session


@dataclass(frozen=True, slots=True)
class Call:
    """Lengths in tokens. Later calls of the same `trial` begin with the first `context` of this one's prompt."""

    model: str
    trial: int
    context: int
    prompt: int
    output: int
    think_s: float  # between the end of the call before and this one


Shape = tuple[Call, ...]  # of a session


def shape_of(session: Session, preamble_tokens: int, models: Sequence[str], message_tokens: int = 0) -> Shape:
    """
    Args:
        models: which one each turn calls.
        message_tokens: what the chat template puts around a message.
    """
    calls, context, trial = [], preamble_tokens, 0
    for turn, model in zip(session.turns, models, strict=True):
        if turn.restarts:
            context, trial = preamble_tokens, trial + 1
        context += turn.observed_tokens + message_tokens
        prompt = context + turn.instructions_tokens + message_tokens
        calls.append(Call(model, trial, context, prompt, turn.output_tokens, turn.think_s))
        context += turn.output_tokens + message_tokens
    return tuple(calls)


class Run:
    """A session under way."""

    __slots__ = ("begun", "chunks", "key", "name", "number", "shape", "turn")

    def __init__(self, number: int, shape: Shape, begun: float) -> None:
        self.number = number
        self.shape = shape
        self.begun = begun
        self.turn = 0
        self.name = str(number)
        self.key = ("x-session-id", self.name)
        self.chunks: dict[tuple[int, int], list[bytes]] = {}  # of its context, by trial and length of a chunk

    @property
    def call(self) -> Call:
        return self.shape[self.turn]


class Prompts:
    """Prompts as caches and placement know them. All sessions begin with the same `preamble_tokens`."""

    def __init__(self, preamble_tokens: int) -> None:
        self.preamble_tokens = preamble_tokens
        self._preamble: dict[int, list[bytes]] = {}

    def stretches(self, run: Run, block_size: int) -> list[Stretch]:
        """The prompt's whole blocks. What is not a whole block is never found again."""
        call = run.call
        whole = call.prompt // block_size
        context = min(call.context // block_size, whole)
        preamble = min(self.preamble_tokens // block_size, context)
        return [
            ("", preamble),
            ((run.number, call.trial), context - preamble),
            ((run.number, run.turn, "end"), whole - context),
        ]

    def chain(self, run: Run, chunk_tokens: int) -> Chain:
        """As the router would hash it."""
        call = run.call
        whole = call.prompt // chunk_tokens
        context = min(call.context // chunk_tokens, whole)
        preamble = min(self.preamble_tokens // chunk_tokens, context)
        common = self._common(chunk_tokens)
        own = run.chunks.setdefault((call.trial, chunk_tokens), [])
        for index in range(len(own), context - preamble):
            own.append(b"%d/%d/%d" % (run.number, call.trial, index))
        end = [b"%d#%d/%d" % (run.number, run.turn, index) for index in range(whole - context)]
        return Chain([*common[:preamble], *own[: context - preamble], *end], call.prompt, chunk_tokens)

    def _common(self, chunk_tokens: int) -> Sequence[bytes]:
        if chunk_tokens not in self._preamble:
            chunks = self.preamble_tokens // chunk_tokens
            self._preamble[chunk_tokens] = [b"preamble/%d" % index for index in range(chunks)]
        return self._preamble[chunk_tokens]
