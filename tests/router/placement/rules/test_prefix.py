import pytest

from prefillshare.router.placement.rules.prefix import Prefix
from tests.router.placement.rules.candidates import PROMPT, candidates, names


@pytest.mark.parametrize(
    ("known", "kept"), [([300, 500, 500], "12"), ([499, 10, 0], ""), ([500, 0, 0], "0"), ([0, 0, 0], "")]
)
def test_the_longest_prefix_is_kept_if_it_is_long_enough(known: list[int], kept: str) -> None:
    assert names(Prefix(share=0.5).keep(candidates(known=known), PROMPT)) == kept


def test_with_no_share_asked_any_prefix_counts_but_none_does_not() -> None:
    assert names(Prefix(share=0).keep(candidates(known=[0, 1]), PROMPT)) == "1"
    assert not Prefix(share=0).keep(candidates(known=[0, 0]), PROMPT)
