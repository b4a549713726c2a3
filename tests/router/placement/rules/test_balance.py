import pytest

from prefillshare.router.placement.rules.balance import Balance
from tests.router.placement.rules.candidates import PROMPT, candidates, names


@pytest.mark.parametrize(
    ("loads", "kept"),
    [
        ([0, 100, 101], "01"),  # the least busy one's plus 100
        ([1000, 2000, 2001], "01"),  # twice the least busy one's
        ([50, 150, 0], "02"),
        ([7, 7, 7], "012"),
    ],
)
def test_a_worker_far_busier_than_the_least_busy_one_is_left_out(loads: list[int], kept: str) -> None:
    assert names(Balance(factor=2, tokens=100).keep(candidates(load=loads), PROMPT)) == kept


def test_what_the_call_would_add_counts() -> None:
    """A home with a queue is left for another worker only if that would be done much earlier, the context included."""
    rule = Balance(factor=1, tokens=100)
    assert names(rule.keep(candidates(load=[5000, 0], added=[400, 6000]), PROMPT)) == "0"
    assert names(rule.keep(candidates(load=[5800, 0], added=[400, 6000]), PROMPT)) == "1"
