from collections.abc import Sequence
from typing import ClassVar

from prefillshare.router.placement.policy import LEAST_RECENT, ONLY, Policy
from prefillshare.router.placement.rule import Candidate, Prompt, Rule
from tests.router.placement.rules.candidates import PROMPT, candidates


class Wants(Rule):
    """Keeps the workers of these names."""

    name: ClassVar[str] = "wants"
    workers: str

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        assert len(candidates) > 1
        return [candidate for candidate in candidates if candidate.worker.name in self.workers]


class AlsoWants(Wants):
    name: ClassVar[str] = "also wants"


def choose(rules: list[Rule], count: int = 4) -> tuple[str, str] | None:
    choice = Policy(rules).choose(candidates(load=[0] * count), PROMPT) if count else Policy(rules).choose([], PROMPT)
    return choice and (choice.candidate.worker.name, choice.rule)


def test_each_rule_chooses_among_what_the_ones_before_have_left() -> None:
    assert choose([Wants(workers="123"), AlsoWants(workers="02")]) == ("2", "also wants")
    assert choose([AlsoWants(workers="02"), Wants(workers="123")]) == ("2", "wants")


def test_a_rule_that_would_leave_nobody_is_passed_over() -> None:
    assert choose([Wants(workers="1"), AlsoWants(workers="9")]) == ("1", "wants")
    assert choose([Wants(workers="9"), AlsoWants(workers="3")]) == ("3", "also wants")


def test_what_all_rules_leave_equal_takes_turns() -> None:
    assert choose([Wants(workers="23")]) == ("2", LEAST_RECENT)


def test_one_worker_needs_no_rule() -> None:
    assert choose([Wants(workers="9")], count=1) == ("0", ONLY)
    assert choose([Wants(workers="9")], count=0) is None
