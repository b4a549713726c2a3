"""Answers compared as text, and as the JSON value that the text stands for."""

import json
import re
from typing import Any

from prefillshare.evaluation.items import BadField, Item

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def unfenced(answer: str) -> str:
    """The first fenced block of an answer, or all of an answer without one; without white space around it."""
    block = _FENCE.search(answer)
    return (block[1] if block else answer).strip()


def is_exact(answer: str, item: Item) -> bool:
    """The expected text, but for white space around it."""
    return answer.strip() == str(item.expected).strip()


def check_exact(item: Item) -> None:
    if not isinstance(item.expected, str | int | float) or isinstance(item.expected, bool):
        raise BadField("expected", f"the exact scorer compares text, found {item.expected!r:.80}; use `scorer: json`")


def is_json(answer: str, item: Item) -> bool:
    """The expected value, whatever the spacing and the order of keys. A fence around the answer is ignored."""
    try:
        return same_json(parse_json(unfenced(answer)), _expected(item))
    except ValueError:
        return False


def check_json(item: Item) -> None:
    try:
        _expected(item)
    except ValueError as error:
        raise BadField("expected", f"a text has to be JSON for this scorer: {error}") from None


def parse_json(text: str) -> Any:
    """Raises ValueError when the text is not JSON, or nested too deeply to tell."""
    try:
        return json.loads(text, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def same_json(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _expected(item: Item) -> Any:
    """A text is JSON itself, since that is how a completion gives the expected answer."""
    return parse_json(item.expected) if isinstance(item.expected, str) else item.expected


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
