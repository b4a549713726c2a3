from typing import Any

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.evaluation.scorers.text import unfenced


def item(expected: Any) -> Item:
    return Item("question", expected)


@pytest.mark.parametrize(
    ("answer", "right"), [("Oxford", True), (" Oxford\n", True), ("oxford", False), ("Oxford.", False), ("", False)]
)
def test_exact_is_the_text_but_for_white_space_around_it(answer: str, right: bool) -> None:
    assert SCORERS["exact"](answer, item("Oxford")) is right


EXPECTED = {"name": "Anna", "quantity": 1, "gift": True, "items": [1, 2], "note": None}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"gift":true,"name":"Anna","quantity":1.0,"items":[1,2],"note":null}', True),
        ('```json\n{"gift":true,"name":"Anna","quantity":1,"items":[1,2],"note":null}\n```', True),
        ('{"gift":1,"name":"Anna","quantity":1,"items":[1,2],"note":null}', False),
        ('{"gift":true,"name":"Anna","quantity":true,"items":[1,2],"note":null}', False),
        ('{"gift":true,"name":"Anna","quantity":1,"items":[2,1],"note":null}', False),
        ('{"gift":true,"name":"Anna","quantity":1,"items":[1,2]}', False),
        ('{"gift":true,"name":"Anna","quantity":1,"items":[1,2],"note":null', False),
        ('{"gift":true,"name":"Anna","quantity":NaN,"items":[1,2],"note":null}', False),
        ("[" * 100_000, False),
        ("1" * 10_000, False),
        ("", False),
    ],
)
def test_json_is_compared_by_value(answer: str, right: bool) -> None:
    assert SCORERS["json"](answer, item(EXPECTED)) is right


def test_an_expected_text_is_json_itself() -> None:
    assert SCORERS["json"]('{"a": 1}', item('{"a":1}'))
    assert not SCORERS["json"]('"{\\"a\\":1}"', item('{"a":1}'))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BadField, match=r"expected.*use `scorer: json`"):
        SCORERS["exact"].check(item({"a": 1}))
    with pytest.raises(BadField, match=r"expected.*JSON"):
        SCORERS["json"].check(item("{"))


def test_a_fence_is_taken_off() -> None:
    assert unfenced("Here:\n```python\nx = 1\ny = 2\n```\nand\n```\nz\n```") == "x = 1\ny = 2"
    assert unfenced("```sql\nSELECT 1") == "SELECT 1"
    assert unfenced(" x = 1 ") == "x = 1"
