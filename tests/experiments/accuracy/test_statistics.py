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


def test_families_count_alike_whatever_their_size() -> None:
    small, large = ([[1] * 10], [[0] * 10]), ([[0] * 400], [[1] * 400])
    assert paired_difference([small, large]).points == pytest.approx(0)
