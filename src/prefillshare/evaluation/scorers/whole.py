"""Calls compared whole, with the one acceptable call that an expected text gives.

Here nothing lists alternatives: an object in a value has the expected one's keys, all of them and no others, and an
empty text is a value like any other. Texts are compared as everywhere (`plain`), numbers by value, but `true` is not 1.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prefillshare.evaluation.scorers.calls import Call
from prefillshare.evaluation.scorers.schema import Functions
from prefillshare.evaluation.scorers.text import same_json

Expected = TypeVar("Expected")

_IGNORED = re.compile(r"[ ,./\-_*^]")


def plain(value: Any) -> Any:
    """Texts without spaces, punctuation and capitals: `April 1, 2024` is `april 1 2024`. Other values as they are."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def one_each(calls: list[Call], expected: Sequence[Expected], meets: Callable[[Call, Expected], bool]) -> bool:
    """Whether every expected call is met by another one of `calls`, and none is left."""
    if len(calls) != len(expected):
        return False
    left = list(calls)
    for each in expected:
        match = next((number for number, call in enumerate(left) if meets(call, each)), None)
        if match is None:
            return False
        del left[match]
    return True


def same_calls(calls: list[Call], expected: list[Call], functions: Functions) -> bool:
    """Whether they are the expected calls, in any order.

    Of `functions` only one thing counts: a number with a decimal point is no value of a parameter of type `integer`,
    unless the expected one has a point, too, as rows that went through a table of floats do.
    """

    def same(one: Call, other: Call) -> bool:
        (name, arguments), (wanted, values) = one, other
        declared = functions.get(wanted, {}).get("parameters", {}).get("properties", {})
        return (
            name == wanted
            and arguments.keys() == values.keys()
            and all(_same(arguments[key], values[key], declared.get(key, {})) for key in values)
        )

    return one_each(calls, expected, same)


def _same(value: Any, expected: Any, declared: dict[str, Any]) -> bool:
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(_same(value[key], expected[key], {}) for key in expected)
        )
    if isinstance(expected, list | tuple):  # JSON has no tuples
        items = declared.get("items")
        elements = items if isinstance(items, dict) else {}
        return (
            isinstance(value, list | tuple)
            and len(value) == len(expected)
            and all(_same(each, other, elements) for each, other in zip(value, expected, strict=True))
        )
    if isinstance(expected, str):
        return isinstance(value, str) and _same_text(value, expected)
    if declared.get("type") == "integer" and isinstance(value, float) and not isinstance(expected, float):
        return False
    return same_json(value, expected)


def _same_text(value: str, expected: str) -> bool:
    if plain(expected) == "":  # "-" and "*" are operators, and neither is ""
        return value.strip() == expected.strip()
    return bool(plain(value) == plain(expected))
