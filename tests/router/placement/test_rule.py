from prefillshare.router.placement.rule import highest, within
from tests.router.placement.rules.candidates import candidates, names


def test_ties_are_kept_in_their_order() -> None:
    assert names(highest(candidates(known=[1, 3, 2, 3]), lambda candidate: candidate.known)) == "13"


def test_both_bounds_must_be_exceeded() -> None:
    found = candidates(load=[10, 20, 25, 26])
    assert names(within(found, lambda candidate: candidate.load, factor=2.5, tokens=5)) == "012"
    assert names(within(found, lambda candidate: candidate.load, factor=1, tokens=15)) == "012"
