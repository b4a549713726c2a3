import json

import pytest

from prefillshare.tools import read_tools

TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("value", [TOOLS, json.dumps(TOOLS)])
def test_tools_are_read_from_a_list_or_its_text(value: object) -> None:
    assert read_tools(value) == TOOLS


@pytest.mark.parametrize("value", [None, [], "[]", "null"])
def test_there_may_be_none(value: object) -> None:
    assert read_tools(value) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "not JSON"),
        ("[f]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ({}, "expected a list of tools, each an object, found {}"),
        (json.dumps(TOOLS[0]), "expected a list of tools"),
        (["f"], "expected a list of tools"),
        (3, "expected a list of tools"),
    ],
)
def test_anything_else_is_refused(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_tools(value)
