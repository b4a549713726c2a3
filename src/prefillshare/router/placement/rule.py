"""What a rule of placement is, and what it gets to see.

A rule judges facts, it keeps none: homes, known prefixes and load are gathered in `placement.py` for both legs. So a
rule is a pure function, a few lines long, and can be tried in a test on candidates that were made up.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from prefillshare.fields import Section
from prefillshare.router.pool import Worker
from prefillshare.router.sessions import SessionKey


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of the call. Before leg 1 nobody has tokenised it, so its length is an estimate."""

    tokens: int
    session: SessionKey | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could serve the call: it is up, and this call has not tried it. Lengths are in tokens."""

    worker: Worker
    home: bool = False  # it served the session's last call
    known: int = 0  # the longest prefix of this prompt that it has probably cached
    own: bool = False  # that prefix is probably this conversation's own, not one that many begin with
    held: int = 0  # all prefixes that it has probably cached
    load: int = 0  # prompts in flight; of the prefill leg, what it has to compute of them
    added: int = 0  # what this call would add to that


class Rule(Section, ABC):
    """One consideration. Its fields are its parameters in the deployment file, its class's docstring explains it."""

    name: ClassVar[str]  # in the deployment file, the response header and the metrics

    @abstractmethod
    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        """The candidates to choose among from here on, in the order given.

        None of them means that the rule has no opinion. There are always at least two, the one that was chosen least
        recently first.
        """


def highest(candidates: Sequence[Candidate], value: Callable[[Candidate], float]) -> list[Candidate]:
    """Those whose value is the highest."""
    values = [value(candidate) for candidate in candidates]
    best = max(values)
    return [candidate for candidate, found in zip(candidates, values, strict=True) if found == best]


def within(
    candidates: Sequence[Candidate], value: Callable[[Candidate], int], factor: float, tokens: int
) -> list[Candidate]:
    """Those whose value exceeds the lowest by no more than `factor` times or by no more than `tokens`."""
    lowest = min(map(value, candidates))
    limit = max(lowest * factor, lowest + tokens)
    return [candidate for candidate in candidates if value(candidate) <= limit]
