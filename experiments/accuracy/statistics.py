"""Means over seeds, and paired differences with an interval for other seeds than those that were tried."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Bits = Sequence[Sequence[int]]  # by seed, then by item: 1 where the answer is right
_MANY = 1_000  # degrees of freedom from which Student's distribution is taken for the normal one


@dataclass(frozen=True)
class Difference:
    """One system minus another on the same items, in points (hundredths), with its 95 % interval."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def mean(bits: Bits) -> float:
    """Over items, then over seeds."""
    return float(np.mean([np.mean(of_seed) for of_seed in bits]))


def paired_difference(families: Sequence[tuple[Bits, Bits]]) -> Difference:
    """Mean over the families of (one - other), each family given as its two systems' bits; each answer paired by item.

    The interval is Student's, over the seeds' differences, as each seed draws rows, order and items anew; of several
    families with Welch and Satterthwaite's degrees of freedom (Satterthwaite, 1946). A percentile bootstrap of three
    seeds would be little more than their range: too narrow by half where they differ. A family of one seed says nothing
    of others; its part is the interval over its items.
    """
    parts = [_of_family(one, other) for one, other in families]
    centre = sum(part.mean for part in parts) / len(parts)
    variance = sum(part.variance for part in parts)
    shares = sum(part.variance**2 / part.freedom for part in parts)
    half = _quantile(variance**2 / shares if shares else math.inf) * math.sqrt(variance) / len(parts)
    return Difference(100 * centre, 100 * (centre - half), 100 * (centre + half))


@dataclass(frozen=True)
class _Part:
    """A family's mean difference, the variance of that mean, and the degrees of freedom which that was found with."""

    mean: float
    variance: float
    freedom: float


def _of_family(one: Bits, other: Bits) -> _Part:
    by_seed = [np.asarray(a) - np.asarray(b) for a, b in zip(one, other, strict=True)]
    means = [float(differences.mean()) for differences in by_seed]
    # What drawing items alone would give. Three seeds that agree by chance must not look surer than that.
    of_items = sum(float(differences.var()) / len(differences) for differences in by_seed) / len(by_seed) ** 2
    if len(by_seed) == 1:
        return _Part(means[0], of_items, math.inf)
    of_seeds = float(np.var(means, ddof=1)) / len(means)
    return _Part(float(np.mean(means)), max(of_seeds, of_items), len(means) - 1)


def _quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution with so many degrees of freedom, which need not be whole.

    With t = sqrt(freedom) tan(angle) its density is that of cos(angle) ** (freedom - 1), which is summed up.
    """
    if freedom > _MANY:
        return NormalDist().inv_cdf(0.975)
    angles = np.linspace(0, math.pi / 2, 100_001)
    summed = np.cumsum(np.cos(angles) ** (freedom - 1))
    angle = float(np.interp(0.95 * summed[-1], summed, angles))  # of the half with t > 0, all but its last twentieth
    return math.sqrt(freedom) * math.tan(angle)
