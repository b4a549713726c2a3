import pytest

from prefillshare.router.placement.rules.room import Room
from tests.router.placement.rules.candidates import PROMPT, candidates, names


@pytest.mark.parametrize(("held", "kept"), [([0, 100, 101], "01"), ([1000, 1500, 1501], "01"), ([9, 9, 9], "012")])
def test_a_worker_far_fuller_than_the_emptiest_one_is_left_out(held: list[int], kept: str) -> None:
    assert names(Room(factor=1.5, tokens=100).keep(candidates(held=held, load=[0, 0, 9999]), PROMPT)) == kept
