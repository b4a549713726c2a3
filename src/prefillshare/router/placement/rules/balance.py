from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from prefillshare.router.placement.rule import Candidate, Prompt, Rule, within


class Balance(Rule):
    """Leaves out workers that are far busier than the least busy one.

    First in the list it bounds all that follows: a hot session spills to another worker instead of sinking its own.
    """

    name: ClassVar[str] = "balance"

    factor: Annotated[float, Field(ge=1)] = 2.0
    tokens: Annotated[int, Field(ge=0)] = 4096

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        return within(candidates, lambda candidate: candidate.load, self.factor, self.tokens)
