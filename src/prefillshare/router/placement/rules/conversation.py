from collections.abc import Sequence
from typing import ClassVar

from prefillshare.router.placement.rule import Candidate, Prompt, Rule, highest


class Conversation(Rule):
    """Keeps the workers that know most of this very conversation, for calls that do not name their session.

    A prefix that many conversations begin with (a system message, examples, tools) says nothing about where this one
    was served; `prefix` makes use of it.
    """

    name: ClassVar[str] = "conversation"

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        own = [candidate for candidate in candidates if candidate.own]
        return highest(own, lambda candidate: candidate.known) if own else []
