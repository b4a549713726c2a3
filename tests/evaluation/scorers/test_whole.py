"""Expected texts, which are compared whole; with tools and without, and whether BFCL's checker is there or not."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS

score = SCORERS["call"]

TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
WORDS = some.sampled_from(["", "Oxford", "High St. 3", "red", "-", "2024-01-02"])
LEAVES = WORDS | some.integers(-3, 3) | some.sampled_from([0.5, 2.0]) | some.booleans() | some.none()
KEYS = some.sampled_from(["city", "tags", "a", "b"])
VALUES = some.recursive(
    LEAVES, lambda values: some.lists(values, max_size=3) | some.dictionaries(KEYS, values, max_size=3), max_leaves=8
)
ARGUMENTS = some.dictionaries(KEYS, VALUES, max_size=3)


def call(arguments: Any) -> str:
    return json.dumps({"name": "f", "arguments": arguments})


def tools(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """OpenAI's form, with every argument declared as what it is; lists as their first element is."""
    properties = {}
    for key, value in arguments.items():
        properties[key] = {"type": TYPES[type(value)]} if value is not None else {"type": ["string", "null"]}
        if isinstance(value, list) and value and value[0] is not None:
            properties[key]["items"] = {"type": TYPES[type(value[0])]}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def changes(value: Any) -> list[Any]:
    """The value with one thing changed, once for everything that can be."""
    if isinstance(value, dict):
        within = [{**value, key: changed} for key, each in value.items() for changed in changes(each)]
        left_out = [{name: each for name, each in value.items() if name != key} for key in value]
        return [*within, *left_out, {**value, "more": "x"}, {**value, "more": ""}]
    if isinstance(value, list):
        within = [[*value[:n], changed, *value[n + 1 :]] for n, each in enumerate(value) for changed in changes(each)]
        return [*within, [*value, "x"], value[:-1] if value else {}, {"a": value}]
    others: list[Any] = ["other", "" if value != "" else "x", None if value is not None else 0, [value], {"a": value}]
    if isinstance(value, bool):
        return [*others, not value, int(value)]
    if isinstance(value, int | float):
        return [*others, value + 1, f"{value}", value in (1, True)]
    return others


@settings(deadline=None)
@given(ARGUMENTS)
def test_what_is_expected_is_right_and_any_change_of_it_is_wrong(arguments: dict[str, Any]) -> None:
    text = call(arguments)
    for item in (Item("q", text), Item("q", text, tools=tools(arguments))):
        score.check(item)
        assert score(text, item)
        for changed in changes(arguments):
            assert not score(call(changed), item), changed


@settings(deadline=None)
@given(some.lists(ARGUMENTS, min_size=1, max_size=3, unique_by=repr), some.randoms())
def test_several_calls_may_come_in_any_order(many: list[dict[str, Any]], random: Any) -> None:
    item = Item("q", f"[{', '.join(map(call, many))}]")
    score.check(item)
    shuffled = random.sample(many, len(many))
    assert score(f"[{', '.join(map(call, shuffled))}]", item)
    assert not score(f"[{', '.join(map(call, shuffled[1:]))}]", item)
    for changed in changes(shuffled[0]):
        assert not score(f"[{', '.join(map(call, [changed, *shuffled[1:]]))}]", item)


def test_calls_whose_values_python_takes_for_equal_are_told_apart() -> None:
    item = Item("q", "[f(x=1), f(x=True)]")
    assert score("[f(x=True), f(x=1)]", item)
    assert not score("[f(x=1), f(x=1)]", item)


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("f(x={'city': 'High St. 3'})", "f(x={'city': 'high st 3'})", True),
        ("f(x=[{'to': [{'city': 'Oxford'}]}])", "f(x=[{'to': [{'city': 'oxford'}]}])", True),
        ("f(x={'op': '-'})", "f(x={'op': '*'})", False),
        ("f(x={'op': '-'})", "f(x={'op': ' - '})", True),
        ("f(x=3.0)", "f(x=3)", True),
        ("f(x=3)", "f(x=3.0)", True),
        ("f(x={'n': [3]})", "f(x={'n': [3.0]})", True),
        ("f(x=(1, 2))", "f(x=[1, 2])", True),
        ("f(x=None)", "f(x=None)", True),
        ("f(x=None)", "f()", False),
        ("[]", "[]", True),
        ("[]", "f()", False),
    ],
)
def test_values_are_compared_as_json_and_texts_as_in_ground_truth(expected: str, answer: str, right: bool) -> None:
    item = Item("q", expected)
    score.check(item)
    assert score(answer, item) is right


@pytest.mark.parametrize(
    ("declared", "expected", "answer", "right"),
    [
        ({"type": "integer"}, "3", "3.0", False),
        ({"type": "integer"}, "3.0", "3", True),  # a row that went through a table of floats
        ({"type": "integer"}, "3.0", "3.0", True),
        ({"type": "integer"}, "3.0", "4", False),
        ({"type": "number"}, "3", "3.0", True),
        ({"type": ["integer", "null"]}, "3", "3.0", False),
        ({"type": "array", "items": {"type": "integer"}}, "[3]", "[3.0]", False),
        ({"type": "array", "items": {"type": "number"}}, "[3]", "[3.0]", True),
        ({"type": "string"}, "{'city': ['Oxford']}", "{'city': ['Oxford']}", True),  # not as declared, but as expected
    ],
)
def test_a_declared_integer_has_no_decimal_point(declared: Any, expected: str, answer: str, right: bool) -> None:
    parameters = {"type": "object", "properties": {"x": declared}}
    item = Item("q", f"f(x={expected})", tools=[{"function": {"name": "f", "parameters": parameters}}])
    score.check(item)
    assert score(f"f(x={answer})", item) is right


def test_a_text_that_is_not_right_itself_is_found_beforehand() -> None:
    with pytest.raises(BadField, match=r"field 'expected'.*would not be right itself.*1e999 - 1e999"):
        score.check(Item("q", "f(x=1e999 - 1e999)"))  # not a number, which equals nothing


def test_a_text_of_a_function_that_is_not_offered_is_found_beforehand() -> None:
    with pytest.raises(BadField, match=r"field 'tools'.*no function 'g'"):
        score.check(Item("q", "g()", tools=tools({})))
