from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from prefillshare.router.placement.rule import Candidate, Prompt, Rule, within


class Room(Rule):
    """Leaves out workers whose caches hold far more than the emptiest one's.

    Without it, conversations with a common beginning would all start on the one worker that knows it: prefills are
    short, so it seldom looks busy, but its cache overflows while the others stay empty.
    """

    name: ClassVar[str] = "room"

    factor: Annotated[float, Field(ge=1)] = 1.25
    tokens: Annotated[int, Field(ge=0)] = 4096

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        return within(candidates, lambda candidate: candidate.held, self.factor, self.tokens)
