"""How much a number of right answers says: intervals for a share and for the difference of two systems.

All intervals are 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True, slots=True)
class Interval:
    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Two systems on the same items. `difference` is the share of the first minus that of the second.

    `only_first` and `only_second` count the items that only one of them got right; `p` is McNemar's exact
    two-sided test that the two are equally likely.
    """

    difference: Interval
    only_first: int
    only_second: int
    p: float


def wilson(right: int, items: int) -> Interval:
    """The score interval of a proportion (Wilson 1927); unlike the normal one it stays inside 0..1.

    Raises:
        ValueError: there are no items.
    """
    if items < 1:
        raise ValueError("an interval needs at least one item")
    share, spread = right / items, _Z**2 / items
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / items + spread / (4 * items)) / (1 + spread)
    # At the ends the limit is the share itself, but for the last digit.
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """`first` and `second` hold the verdicts on the same items in the same order.

    The interval is the Wald interval with the adjustment of Bonett and Price (2012), one item added to each of the two
    discordant counts: one of those that Fagerland, Lydersen and Laake (2014) recommend for paired
    proportions. It is not empty when the systems agree on all items, as a bootstrap's would be.

    Raises:
        ValueError: there are no items, or not as many of one as of the other.
    """
    items = len(first)
    if items < 1 or items != len(second):
        raise ValueError(f"paired verdicts are as many as the items: {items} and {len(second)}")
    only_first = sum(one and not other for one, other in zip(first, second, strict=True))
    only_second = sum(other and not one for one, other in zip(first, second, strict=True))
    a, b = (only_first + 1) / (items + 2), (only_second + 1) / (items + 2)
    half = _Z * math.sqrt((a + b - (a - b) ** 2) / (items + 2))
    interval = Interval((only_first - only_second) / items, max(-1.0, a - b - half), min(1.0, a - b + half))
    return PairedDifference(interval, only_first, only_second, _exact_mcnemar(only_first, only_second))


def _exact_mcnemar(one: int, other: int) -> float:
    """Probability of a split at least this uneven of the discordant items, when either side is equally likely."""
    total = one + other
    tail = sum(math.comb(total, k) for k in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**total)
