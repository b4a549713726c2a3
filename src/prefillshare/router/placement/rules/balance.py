from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from prefillshare.router.placement.rule import Candidate, Prompt, Rule, within


class Balance(Rule):
    """Leaves out workers that would have far more to do, this call included, than the one with the least.

    First in the list it bounds all that follows: a hot session spills to another worker instead of sinking its own. It
    stays as long as what lies before it there is less than what another worker would have to compute again.
    """

    name: ClassVar[str] = "balance"

    factor: Annotated[float, Field(ge=1)] = 2.0
    tokens: Annotated[int, Field(ge=0)] = 4096

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        return within(candidates, lambda candidate: candidate.load + candidate.added, self.factor, self.tokens)
