from collections.abc import Sequence
from typing import ClassVar

from prefillshare.router.placement.rule import Candidate, Prompt, Rule


class Session(Rule):
    """Keeps the worker that served the session's last call in this pool: it has the longest context."""

    name: ClassVar[str] = "session"

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        return [candidate for candidate in candidates if candidate.home]
