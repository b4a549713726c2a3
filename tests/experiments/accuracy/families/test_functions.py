"""BFCL items: the split by function name, and how a function and a call are written."""

import json
from pathlib import Path

import pytest

from experiments.accuracy.families import functions
from experiments.accuracy.items import Item, Size
from prefillshare.errors import UserError


def names(items: list[Item]) -> set[str]:
    return {tool["name"] for item in items for tool in item.tools or ()}


def test_no_function_is_in_two_parts_not_even_as_one_that_is_not_needed() -> None:
    data = functions.build(0, Size(2_000, 100, 200))
    assert any(len(item.tools or ()) > 1 for item in data.test)
    assert not names(data.train) & names(data.test)
    assert not names(data.train) & names(data.validation)
    assert not names(data.validation) & names(data.test)


def test_more_items_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="lower it"):
        functions.build(0, Size(10, 100, 5_000))


@pytest.mark.timeout(60)
def test_where_large_groups_alone_are_left_it_ends() -> None:
    with pytest.raises(UserError, match="lower it"):
        functions.build(0, Size(10, 250, 500))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install"):
        functions.build(0, Size(1, 1, 1))


def test_values_behind_each_other_are_read_whatever_is_between(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('\n{"a": 1}{"b":\n 2}\n\n  {"c": 3}\n')
    assert functions._read(file) == [{"a": 1}, {"b": 2}, {"c": 3}]


ROW = {
    "question": [[{"role": "user", "content": "How far is Rome?"}]],
    "function": [
        {
            "name": "map.distance",
            "description": "Distance.",
            "parameters": {
                "type": "dict",
                "properties": {
                    "to": {"type": "string", "description": "Where."},
                    "unit": {"type": "string", "description": "km or miles."},
                    "fast": {"type": "boolean"},
                },
                "required": ["to", "unit"],
            },
        }
    ],
}


def test_how_a_function_and_its_call_are_written() -> None:
    item = functions._item(ROW, [{"map.distance": {"to": ["Rome", "Roma"], "unit": ["", "km"], "fast": ["", True]}}])
    assert item is not None
    assert item.prompt[-1]["content"] == (
        "map.distance(to: str, unit: str, fast: bool = ...)\n  Distance.\n"
        "  to: Where.\n  unit: km or miles.\n  fast: \n\nHow far is Rome?"
    )
    # What is required is given, what may be left out is left out.
    assert item.answer == "map.distance(to='Rome', unit='km')"


@pytest.mark.parametrize(
    "gold",
    [
        [{"map.distance": {"to": ["Rome"]}}, {"map.distance": {"to": ["Paris"]}}],
        [{"map.distance": {"to": [{"city": ["Rome"]}]}}],
    ],
    ids=["two calls", "an argument with alternatives inside"],
)
def test_other_calls_are_left_out(gold: list[dict[str, dict[str, list[object]]]]) -> None:
    assert functions._item(ROW, gold) is None


def test_long_rows_are_left_out() -> None:
    row = json.loads(json.dumps(ROW))
    row["question"][0][0]["content"] *= 100
    assert functions._item(row, [{"map.distance": {"to": ["Rome"]}}]) is None
