"""A median and how far it can be trusted."""

import math
import statistics
from collections.abc import Sequence

from prefillshare.evaluation.statistics import Interval


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its 95 % interval, or, of fewer than six values, their range: no interval of 95 % is narrower.

    The interval goes from the k-th smallest value to the k-th largest, whatever the values' distribution (David and
    Nagaraja, Order Statistics, section 7.1): the median lies outside it with probability 2 P(Binomial(n, 1/2) < k).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered, count = sorted(values), len(values)
    outside, left_out = 2 * 0.5**count, 0  # left out at either end
    while outside + 2 * math.comb(count, left_out + 1) * 0.5**count <= 0.05:
        left_out += 1
        outside += 2 * math.comb(count, left_out) * 0.5**count
    return Interval(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out])
