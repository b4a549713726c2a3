"""Percentiles of durations, some of which are known only in part since a run ended before they did."""

from collections.abc import Sequence

from prefillshare.percentile import percentile

_LEAST, _ENOUGH = 2, 5  # durations that must go on at a percentile of which some were cut


def percentile_with_cut(ended: Sequence[float], cut: Sequence[float], share: float) -> tuple[float | None, bool]:
    """The percentile of durations of which some, `cut`, are known only to be longer than they say.

    After Kaplan and Meier (1958): what was cut counts among those under way until then, and after that stands for
    nothing. Where few are left under way, one of them would stand for all that were cut, so nothing is read from the
    last one, nor from fewer than half of those that would be left were none cut; five are always enough. Returns the
    longest duration that is known, or that all of so few have, and True, when the percentile lies beyond it; of none,
    None.
    """
    under_way, surviving = len(ended) + len(cut), 1.0
    left = int((1 - share) * under_way + 1e-9) + 1
    enough = min(_ENOUGH, max(_LEAST, -(-left // 2))) if cut else 0
    if not under_way:
        return None, False
    for duration, is_end in sorted([(value, True) for value in ended] + [(value, False) for value in cut], key=_order):
        if under_way < enough:
            return duration, True
        if is_end:
            surviving *= 1 - 1 / under_way
            if surviving <= 1 - share + 1e-9:
                return duration, False
        under_way -= 1
    return max([*ended, *cut]), True


def percentile_with_unknown(values: Sequence[float], unknown: int, share: float) -> tuple[float | None, bool]:
    """The percentile of these and of so many of which nothing is known: those that were under way at a run's end.

    Where it may be one of the latter, it is at least as if they were the shortest of all; and True.
    """
    if unknown <= (1 - share) * (len(values) + unknown):
        return percentile(values, share), False
    return percentile([0.0] * unknown + list(values), share), True


def _order(known: tuple[float, bool]) -> tuple[float, bool]:
    """Of equal durations, those that ended come first."""
    return known[0], not known[1]
