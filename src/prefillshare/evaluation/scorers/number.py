"""The final number of an answer, as in worked arithmetic: the last one, or the one behind the last `####`.

Thousands separators (`1,234`, and LaTeX's `1{,}234` and `1\\,234`), currency signs and per cent signs are read over:
50% is 50. `1/2`, `\\frac{1}{2}` and `\\frac{-0.5}{2}` are fractions (`1\\frac{1}{2}` is 3/2). A `\\frac` of anything
but numbers takes the place of a number, and has no value. Numbers are compared as fractions to a relative 1e-9.
"""

import re
from fractions import Fraction
from typing import Any

from prefillshare.evaluation.items import BadField, Item

# Thin spaces and the like. A `,` is among them only where braces or `\!` take its space away: 1,\,234 is a list.
_SEPARATOR = r"(?:\{,\}|,\\!|\{,\\!\}|\{\\,\}|\\[,:;! ])"
_SEPARATED = re.compile(rf"(?:(?<![A-Za-z_\d.,])\d{{1,3}}|(?<=\d)\.\d{{3}})(?:{_SEPARATOR}\d{{3}})+(?!\d)")

# A sign counts unless it stands between operands (5-3, \frac{5}{2}-3).
_SIGN = r"(?<![\w)\]])(?<!\d\})[-+\u2212]"
# Digits count unless they belong to a word (H2O). The length of the exponent is bounded, because a fraction writes
# 1e999999999 out. Of a date or a path (3/4/2020) no part is a fraction.
_NUMBER = (
    rf"(?P<slash>(?<=/)|(?<=/\s))?(?P<sign>{_SIGN})?[$\u20ac\u00a3]?(?P<value>(?<![A-Za-z_\d.])"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\d))?(?(slash)|(?:\s?/\s?(?P<divisor>\d+)(?!\d|[.,]\d|\s?/))?)"
)
# An argument is in braces, here to a depth of three, or one symbol: \frac12 is \frac{1}{2}. What lacks one, since the
# answer was cut off, say, is read as a fraction to the end of the line, lest its digits be taken for numbers.
_ARGUMENT = r"\s*(?:\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\\[A-Za-z]+|[^\s{}\\])"
_FRACTION = (
    rf"(?P<minus>{_SIGN})?(?:(?P<whole>(?<![A-Za-z_\d.,])\d+)\s?)?"
    rf"\\[dt]?frac(?![A-Za-z])(?:(?P<top>{_ARGUMENT})(?P<bottom>{_ARGUMENT})|(?:{_ARGUMENT})?\s*\{{.*)"
)
_FOUND = re.compile(rf"{_FRACTION}|{_NUMBER}")
_PART = re.compile(
    r"\s*(?P<sign>[-+\u2212])?\s*(?:\\?[$\u20ac\u00a3])?(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)\s*"
)
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
    """None when there is no number, when it divides by zero, or has more digits than Python converts (4,300).

    Such a one, which no item expects, is of a model that repeats itself. None, too, when the last is a `\\frac` that is
    not of numbers: those before it are steps on the way to it.
    """
    _, marker, behind = text.rpartition("####")
    found = list(_FOUND.finditer(_SEPARATED.sub(lambda digits: re.sub(_SEPARATOR, "", digits[0]), behind)))
    if not found:
        return None
    number = found[0] if marker else found[-1]
    try:
        value = _number(number) if number["value"] else _fraction(number)
    except (ValueError, ZeroDivisionError):
        return None
    return -value if (number["sign"] or number["minus"]) in ("-", "\u2212") else value


def _number(number: re.Match[str]) -> Fraction:
    value = Fraction(number["value"].replace(",", "")) / int(number["divisor"] or 1)
    return value * Fraction(10) ** int(number["exponent"] or 0)


def _fraction(number: re.Match[str]) -> Fraction:
    top, bottom = (_part(number[name] or "") for name in ("top", "bottom"))
    if number["whole"] is None:
        return top / bottom
    if min(top, bottom) < 0 or (top.denominator, bottom.denominator) != (1, 1):
        raise ValueError("not a mixed number but a product, say")
    return int(number["whole"]) + top / bottom


def _part(argument: str) -> Fraction:
    """The number that an argument of `\\frac` is. ValueError when it is something else."""
    part = _PART.fullmatch(argument.strip().removeprefix("{").removesuffix("}"))
    if part is None:
        raise ValueError(f"{argument} is not a number")
    value = Fraction(part["value"].replace(",", ""))
    return -value if part["sign"] in ("-", "\u2212") else value


def _expected(value: Any) -> Fraction | None:
    return None if isinstance(value, bool) or not isinstance(value, str | int | float) else final_number(str(value))
