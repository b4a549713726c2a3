"""Candidates made up for tests of rules."""

from typing import Any

from prefillshare.router.placement.rule import Candidate, Prompt
from tests.router.fakes import prefill_worker

PROMPT = Prompt(tokens=1000, session=("x-session-id", "s"))


def candidates(**facts: list[Any]) -> list[Candidate]:
    """One for each value: `candidates(load=[1, 2])` are the workers "0" and "1" with these loads."""
    count = len(next(iter(facts.values())))
    return [
        Candidate(prefill_worker(str(n)), **{fact: values[n] for fact, values in facts.items()}) for n in range(count)
    ]


def names(kept: Any) -> str:
    return "".join(candidate.worker.name for candidate in kept)
