"""The final number of an answer, as in worked arithmetic: the last one, or the one behind the last `####`.

Thousands separators, currency signs and per cent signs are read over (50% is 50), `1/2` and `\\frac{1}{2}` are
fractions (`1\\frac{1}{2}` is 3/2), and numbers are compared as fractions to a relative 1e-9.
"""

import re
from fractions import Fraction
from typing import Any

from prefillshare.evaluation.items import BadField, Item

# A sign counts unless it stands between operands (5-3), digits unless they belong to a word (H2O). The length of the
# exponent is bounded, because a fraction writes 1e999999999 out. Of a date or a path (3/4/2020) no part is a fraction.
_NUMBER = re.compile(
    r"(?P<slash>(?<=/)|(?<=/\s))?(?P<sign>(?<![\w)\]])[-+\u2212])?[$\u20ac\u00a3]?(?P<value>(?<![A-Za-z_\d.])"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\d))?(?(slash)|(?:\s?/\s?(?P<divisor>\d+)(?!\d|[.,]\d|\s?/))?)"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_LATEX_MIXED = re.compile(r"(?<![\d.,])(\d{1,18})\s?\\[dt]?frac\{(\d{1,18})\}\{(\d{1,18})\}")
_CLOSE = Fraction(1, 10**9)


def is_right(answer: str, item: Item) -> bool:
    found, expected = final_number(answer), _expected(item.expected)
    if found is None or expected is None:
        return False
    return abs(found - expected) <= _CLOSE * max(abs(found), abs(expected))


def check(item: Item) -> None:
    if _expected(item.expected) is None:
        raise BadField("expected", f"no number in {item.expected!r:.80}")


def final_number(text: str) -> Fraction | None:
    """None when there is no number, when it divides by zero, or has more digits than Python converts (4,300)."""
    _, marker, behind = text.rpartition("####")
    improper = _LATEX_MIXED.sub(lambda mixed: f"{int(mixed[1]) * int(mixed[3]) + int(mixed[2])}/{mixed[3]}", behind)
    found = list(_NUMBER.finditer(_LATEX_FRACTION.sub(r"\1/\2", improper)))
    if not found:
        return None
    number = found[0] if marker else found[-1]
    try:
        divisor, value = int(number["divisor"] or 1), Fraction(number["value"].replace(",", ""))
    except ValueError:  # as a model repeats itself: no number that an item expects is as long
        return None
    if divisor == 0:
        return None
    value *= Fraction(10) ** int(number["exponent"] or 0) / divisor
    return -value if number["sign"] in ("-", "\u2212") else value


def _expected(value: Any) -> Fraction | None:
    return None if isinstance(value, bool) or not isinstance(value, str | int | float) else final_number(str(value))
