"""How the rules of one leg decide together."""

from collections.abc import Sequence
from typing import NamedTuple

from prefillshare.router.placement.rule import Candidate, Prompt, Rule

ONLY = "only"  # there was one candidate
LEAST_RECENT = "least_recent"  # to all rules some were equal: the one not chosen for longest


class Choice(NamedTuple):
    candidate: Candidate
    rule: str  # the rule that decided: the last to leave one out; or ONLY, or LEAST_RECENT


class Policy:
    """Rules in order: each leaves the next fewer candidates to choose among, until one is left."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)

    def choose(self, candidates: Sequence[Candidate], prompt: Prompt) -> Choice | None:
        """One of the candidates, which come in order, the one not chosen for longest first; None if there is none."""
        if len(candidates) <= 1:
            return Choice(candidates[0], ONLY) if candidates else None
        for rule in self._rules:
            candidates = rule.keep(candidates, prompt) or candidates
            if len(candidates) == 1:
                return Choice(candidates[0], rule.name)
        return Choice(candidates[0], LEAST_RECENT)
