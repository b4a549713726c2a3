"""Means over seeds, and paired differences with an interval that covers both the choice of seeds and of items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
Bits = Sequence[Sequence[int]]  # by seed, then by item: 1 where the answer is right


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
    """Mean over the families of (one - other), each family given as its two systems' bits.

    The interval is a percentile bootstrap in two stages (Davison and Hinkley, 1997, section 3.8): seeds are drawn
    with replacement, then the items of each drawn seed; an item's two answers stay together.
    """
    rng = np.random.default_rng(0)
    centre, resampled = 0.0, np.zeros(_RESAMPLES)
    for one, other in families:
        by_seed = [np.asarray(a) - np.asarray(b) for a, b in zip(one, other, strict=True)]
        centre += float(np.mean([d.mean() for d in by_seed])) / len(families)
        # Means of resampled items, for as many draws of every seed as can occur.
        drawn = np.stack([_resampled_means(d, len(by_seed), rng) for d in by_seed])  # [seed, draw, resample]
        chosen = rng.integers(len(by_seed), size=(len(by_seed), _RESAMPLES))
        draws = [drawn[chosen[draw], draw, np.arange(_RESAMPLES)] for draw in range(len(by_seed))]
        resampled += np.mean(draws, axis=0) / len(families)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Difference(100 * centre, 100 * float(low), 100 * float(high))


def _resampled_means(differences: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draw, resample]: the mean over items drawn with replacement, which only their three counts decide."""
    values = np.array([-1, 0, 1])
    shares = [(differences == value).mean() for value in values]
    counts = rng.multinomial(len(differences), shares, size=(draws, _RESAMPLES))
    means: np.ndarray = counts @ values / len(differences)
    return means
