from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from prefillshare.router.placement.rule import Candidate, Prompt, Rule, highest


class Prefix(Rule):
    """Keeps the workers that know the longest prefix of the prompt, if that is at least `share` of it."""

    name: ClassVar[str] = "prefix"

    share: Annotated[float, Field(ge=0, le=1)] = 0.25

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        longest = highest(candidates, lambda candidate: candidate.known)
        return longest if longest[0].known > 0 and longest[0].known >= self.share * prompt.tokens else []
