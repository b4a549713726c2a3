"""Paired differences and their intervals."""

import numpy as np
import pytest

from experiments.accuracy.statistics import mean, paired_difference


def random_bits(rng: np.random.Generator, share: float, seeds: int = 3, items: int = 200) -> list[list[int]]:
    return [[int(bit) for bit in rng.random(items) < share] for _ in range(seeds)]


def test_mean_is_over_items_then_seeds() -> None:
    assert mean([[1, 0], [1, 1, 1, 1]]) == pytest.approx(0.75)


def test_equal_systems_differ_by_exactly_nothing() -> None:
    bits = random_bits(np.random.default_rng(0), 0.5)
    difference = paired_difference([(bits, bits)])
    assert (difference.points, difference.low, difference.high) == (0, 0, 0)


def test_the_interval_of_one_seed_is_that_of_the_mean_of_paired_differences() -> None:
    rng = np.random.default_rng(1)
    one, other = random_bits(rng, 0.6, seeds=1), random_bits(rng, 0.5, seeds=1)
    differences = np.array(one[0]) - np.array(other[0])
    difference = paired_difference([(one, other)])
    error = 100 * differences.std() / np.sqrt(len(differences))
    assert difference.points == pytest.approx(100 * differences.mean())
    assert difference.low == pytest.approx(difference.points - 1.96 * error, abs=0.8)
    assert difference.high == pytest.approx(difference.points + 1.96 * error, abs=0.8)


def test_seeds_that_disagree_widen_the_interval() -> None:
    agreeing = [[1] * 100 + [0] * 100] * 3
    disagreeing = [[1] * 200, [1] * 100 + [0] * 100, [0] * 200]
    nothing = [[0] * 200] * 3
    narrow, wide = paired_difference([(agreeing, nothing)]), paired_difference([(disagreeing, nothing)])
    assert narrow.points == wide.points == pytest.approx(50)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.15])
def test_other_seeds_lie_within_the_interval_as_often_as_it_says(spread: float) -> None:
    """Of three seeds whose true differences are drawn around 10 points; a bootstrap of them would have 80 to 97 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        truth = rng.normal(0.1, spread, size=3).clip(-0.3, 0.5)
        one = [(rng.random(200) < 0.4 + of_seed).astype(int).tolist() for of_seed in truth]
        found = paired_difference([(one, random_bits(rng, 0.4))])
        covered += found.low <= 10 <= found.high
    assert covered / 400 >= 0.93


def test_the_interval_of_three_seeds_is_students() -> None:
    one = [[1] * 30 + [0] * 70, [1] * 50 + [0] * 50, [1] * 70 + [0] * 30]
    found = paired_difference([(one, [[0] * 100] * 3)])
    assert (found.low, found.high) == pytest.approx((50 - 4.3027 * 20 / 3**0.5, 50 + 4.3027 * 20 / 3**0.5), abs=0.01)


def test_seeds_that_agree_by_chance_leave_the_interval_of_their_items() -> None:
    agreeing = [[1] * 100 + [0] * 100] * 3
    found = paired_difference([(agreeing, [[0] * 200] * 3)])
    assert found.high - found.points == pytest.approx(4.3027 * 100 * (0.25 / 200 / 3) ** 0.5, abs=0.01)


def test_of_several_families_the_one_whose_seeds_differ_most_decides_the_interval() -> None:
    steady = ([[1] * 50 + [0] * 50] * 3, [[0] * 100] * 3)
    varied = ([[1] * 20 + [0] * 80, [1] * 50 + [0] * 50, [1] * 80 + [0] * 20], [[0] * 100] * 3)
    alone, both = paired_difference([varied]), paired_difference([varied, steady])
    assert both.points == pytest.approx(50)
    # Half the mean is as uncertain as before, the rest hardly: half as wide, at about 2 degrees of freedom.
    assert 0.4 < (both.high - both.low) / (alone.high - alone.low) < 0.55


def test_families_count_alike_whatever_their_size() -> None:
    small, large = ([[1] * 10], [[0] * 10]), ([[0] * 400], [[1] * 400])
    assert paired_difference([small, large]).points == pytest.approx(0)
