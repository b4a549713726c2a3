from typing import Any

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.evaluation.scorers.thought import after_thought

EMPTY = "<think>\n\n</think>\n\n"  # as Qwen3's chat template writes it
CALL = '{"name": "f", "arguments": {"x": 1}}'
# Each scorer with a right answer, and fields of the item that it needs.
RIGHT: list[tuple[str, str, dict[str, Any]]] = [
    ("exact", "Oxford", {}),
    ("json", '{"a": 1}', {}),
    ("number", "42", {}),
    ("sql", "SELECT 1", {"setup": "CREATE TABLE t (x)"}),
    ("call", CALL, {}),
    ("python", "x = 1", {"tests": "assert x == 1"}),
]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Oxford", "Oxford"),
        (f"{EMPTY}Oxford", "\n\nOxford"),
        ("\n <think>Which city?</think>Oxford", "Oxford"),
        ("<think>a</think>b<think>c</think>d", "b<think>c</think>d"),
        ("<think><think>a</think>b</think>c", "b</think>c"),
        ("So: <think>a</think>b", "So: <think>a</think>b"),
        ("</think>b", "</think>b"),
        ("<think>a</think>", ""),
        ("<think>a", None),
    ],
)
def test_one_thought_at_the_beginning_is_dropped(text: str, said: str | None) -> None:
    assert after_thought(text) == said


@pytest.mark.parametrize(("scorer", "answer", "fields"), RIGHT)
def test_a_thought_before_an_answer_does_not_count(scorer: str, answer: str, fields: dict[str, Any]) -> None:
    score = SCORERS[scorer]
    for expected in (answer, EMPTY + answer):
        item = Item("q", expected, fields=fields)
        score.check(item)
        for thought in ("", EMPTY, "<think>\nOr is it 43, f(x=2) or\n```\nnothing\n```?\n</think>\n"):
            assert score(thought + answer, item), (expected, thought)
        assert not score(EMPTY + "Paris", item)


@pytest.mark.parametrize(("scorer", "answer", "fields"), RIGHT)
def test_an_answer_within_a_thought_that_never_ends_is_wrong(scorer: str, answer: str, fields: dict[str, Any]) -> None:
    item = Item("q", answer, fields=fields)
    for text in (answer, f"\n```\n{answer}\n```", f"<tool_call>{answer}</tool_call>"):
        assert not SCORERS[scorer](f"<think>{text}", item)


@pytest.mark.parametrize(("scorer", "answer", "fields"), RIGHT)
def test_an_expected_thought_that_never_ends_is_found_beforehand(
    scorer: str, answer: str, fields: dict[str, Any]
) -> None:
    item = Item("q", f"<think>{answer}", fields=fields)
    if scorer == "python":  # which does not read it
        SCORERS[scorer].check(item)
        return
    with pytest.raises(BadField, match=r"field 'expected': its thought never ends.*'<think>.*; add </think>"):
        SCORERS[scorer].check(item)
