"""Sessions drawn from a family: word salad, with the lengths and the turn structure of the real ones."""

import random
from collections.abc import Iterator
from dataclasses import replace

from prefillshare.workloads.family import CallShape, Family, draw_quantity, draw_weighted
from prefillshare.workloads.session import Session, Turn, Workload, fitting
from prefillshare.workloads.tokens import Salad, Tokenise


def generate(family: Family, sessions: int, tokenise: Tokenise, seed: int = 0) -> Workload:
    """`sessions` sessions; session k is the same whatever their number, and no two share more than the preamble.

    Every text has exactly the tokens that it says under `tokenise`, so a family that was fitted with one tokenizer
    keeps its lengths with another.

    Raises:
        ValueError: text of a given length cannot be made up for this tokenizer.
    """
    salad = Salad(tokenise)
    preamble = salad.text(family.preamble_tokens, random.Random(f"{family.name}/{seed}"))
    counts = {role: len(tokenise(text)) for role, text in family.instructions.items()}

    def session(number: int) -> Session:
        maker = _Maker(family, salad, counts, random.Random(f"{family.name}/{seed}/{number}"))
        turns = fitting(maker.turns(), family.preamble_tokens, family.context_limit)
        return Session(f"{family.name}-{seed}-{number}", turns)

    drawn = tuple(map(session, range(sessions)))
    return Workload(family.name, preamble, family.preamble_tokens, drawn, declared=family.roles)


class _Maker:
    """One session."""

    def __init__(self, family: Family, salad: Salad, instructions_tokens: dict[str, int], draw: random.Random) -> None:
        self._family = family
        self._salad = salad
        self._instructions_tokens = instructions_tokens
        self._draw = draw

    def turns(self) -> Iterator[Turn]:
        family, draw = self._family, self._draw
        beginning = [self._text("question")]
        trials = draw_weighted(family.trials, draw)
        steps = draw_weighted(family.first_steps[trials == 1], draw)
        for trial in range(trials):
            last = trial + 1 == trials
            ends = self._trial(" ".join(beginning), steps, again=trial > 0, last=last)
            for turn in ends:
                yield turn
                if turn.role == family.between:
                    beginning.append(turn.output)
            steps = draw_weighted(family.next_steps[steps], draw) if steps in family.next_steps else steps

    def _trial(self, beginning: str, steps: int, *, again: bool, last: bool) -> Iterator[Turn]:
        family = self._family
        answered = self._draw.random() < family.answered.get(steps, 1.0)
        for step in range(steps):
            seen = "finding" if answered and step + 1 == steps and "finding" in family.lengths else "observation"
            for place, call in enumerate(family.step):
                if step == 0 and place == 0:
                    yield replace(self._call(call, beginning), restarts=again, think_s=0.0)
                else:
                    yield self._call(call, self._text(seen) if call.observes else "")
        if family.closing and answered:
            yield self._call(CallShape(role=family.closing), "")
        if family.between and not last:
            seen = "" if answered else self._text("observation")
            yield self._call(CallShape(role=family.between, observes=not answered), seen)

    def _call(self, call: CallShape, observed: str) -> Turn:
        output = self._text(call.role, least=1)
        return Turn(
            role=call.role,
            observed=observed,
            observed_tokens=_words(observed),
            output=output,
            output_tokens=_words(output),
            think_s=round(draw_quantity(self._family.think_s, self._draw), 3) if call.observes else 0.0,
            instructions=self._family.instructions[call.role],
            instructions_tokens=self._instructions_tokens[call.role],
        )

    def _text(self, quantity: str, least: int = 0) -> str:
        tokens = round(draw_quantity(self._family.lengths[quantity], self._draw))
        return self._salad.text(max(least, tokens), self._draw)


def _words(text: str) -> int:
    """The tokens of salad, each of whose words is one."""
    return len(text.split())
