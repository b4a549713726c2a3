import math

import pytest

from experiments.intervals import median_interval


@pytest.mark.parametrize(
    ("count", "left_out"),
    [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (30, 9)],  # printed tables of the sign test
)
def test_the_interval_leaves_out_as_many_as_the_sign_test_allows(count: int, left_out: int) -> None:
    found = median_interval([float(value) for value in reversed(range(count))])
    assert (found.low, found.high) == (left_out, count - 1 - left_out)
    assert found.estimate == (count - 1) / 2


def test_it_does_not_follow_one_outlier() -> None:
    found = median_interval([1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 50.0])
    assert found.estimate == 1.0
    assert math.isclose(found.high, 1.02)


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        median_interval([])
