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
        self.chunks: dict[
            tuple[int, int, str], list[bytes]
        ] = {}  # of its context, by trial, length of a chunk and whose

    @property
    def call(self) -> Call:
        return self.shape[self.turn]


class Prompts:
    """Prompts as caches and placement know them. All sessions begin with the same `preamble_tokens`.

    `apart`: by tokens and model, so that what one model has computed is new to the others.
    """

    def __init__(self, preamble_tokens: int, *, apart: bool = False) -> None:
        self.preamble_tokens = preamble_tokens
        self._apart = apart
        self._preamble: dict[tuple[str, int], list[bytes]] = {}

    def key(self, run: Run) -> tuple[str, str]:
        """By which the session, or what is one to the caches, is known."""
        return (run.key[0], f"{run.name}/{run.call.model}") if self._apart else run.key

    def stretches(self, run: Run, block_size: int) -> list[Stretch]:
        """The prompt's whole blocks. What is not a whole block is never found again."""
        call, whose = run.call, self._whose(run)
        whole = call.prompt // block_size
        context = min(call.context // block_size, whole)
        preamble = min(self.preamble_tokens // block_size, context)
        return [
            (whose, preamble),
            ((run.number, call.trial, whose), context - preamble),
            ((run.number, run.turn, "end"), whole - context),
        ]

    def chain(self, run: Run, chunk_tokens: int) -> Chain:
        """As the router would hash it."""
        call, whose = run.call, self._whose(run)
        whole = call.prompt // chunk_tokens
        context = min(call.context // chunk_tokens, whole)
        preamble = min(self.preamble_tokens // chunk_tokens, context)
        common = self._common(whose, chunk_tokens)
        own = run.chunks.setdefault((call.trial, chunk_tokens, whose), [])
        for index in range(len(own), context - preamble):
            own.append(b"%d/%d/%d%s" % (run.number, call.trial, index, whose.encode()))
        end = [b"%d#%d/%d" % (run.number, run.turn, index) for index in range(whole - context)]
        return Chain([*common[:preamble], *own[: context - preamble], *end], call.prompt, chunk_tokens)

    def _common(self, whose: str, chunk_tokens: int) -> Sequence[bytes]:
        if (whose, chunk_tokens) not in self._preamble:
            chunks = [
                b"preamble/%d%s" % (index, whose.encode()) for index in range(self.preamble_tokens // chunk_tokens)
            ]
            self._preamble[whose, chunk_tokens] = chunks
        return self._preamble[whose, chunk_tokens]

    def _whose(self, run: Run) -> str:
        return run.call.model if self._apart else ""
