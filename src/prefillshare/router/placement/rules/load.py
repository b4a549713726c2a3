from collections.abc import Sequence
from typing import ClassVar

from prefillshare.router.placement.rule import Candidate, Prompt, Rule, highest


class Load(Rule):
    """Keeps the workers with the fewest tokens in flight. Of equals, the one not chosen for longest is taken."""

    name: ClassVar[str] = "load"

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        return highest(candidates, lambda candidate: -candidate.load)
