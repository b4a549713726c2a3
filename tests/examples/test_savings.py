import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from examples.demo import __main__ as demo
from examples.demo.play import Call
from examples.demo.savings import (
    as_json,
    calls_table,
    computed_tokens,
    count_savings,
    own_mistakes,
    savings_table,
    shortcomings,
)


def call(model: str, ids: list[int], computed: int, others: int = 0) -> Call:
    return Call(
        model=model,
        prompt_tokens=len(ids),
        computed_tokens=computed,
        reused_tokens=len(ids) - computed,
        reused_from_others_tokens=others,
        prefill_ms=1.0,
        handoff_bytes=2_000_000,
        handoff_ms=3.0,
        first_token_ms=4.0,
        answer="yes\n",
        expected="yes" if model == "a" else "no",
        prompt_token_ids=tuple(ids),
    )


CONTEXT = list(range(10))
# a, then b, then a again on a context that has grown: with blocks of 4, two are whole at 10 tokens and three at 13.
SESSION = [
    call("a", CONTEXT, 10),
    call("b", [*CONTEXT, 10, 11, 12], 13 - 8, others=8),
    call("a", [*CONTEXT, 10, 11, 12, 13], 14 - 12, others=4),
]


@pytest.mark.parametrize(
    ("prompts", "computed"),
    [
        ([("a", [1, 2, 3, 4, 5])], [5]),
        ([("a", [1, 2, 3, 4, 5]), ("a", [1, 2, 3, 4, 6])], [5, 1]),
        ([("a", [1, 2, 3, 4, 5]), ("b", [1, 2, 3, 4, 6])], [5, 5]),
        ([("a", [1, 2, 3, 4, 5]), ("a", [1, 2, 3, 9, 5])], [5, 5]),
        ([("a", [1, 2, 3, 4]), ("a", [1, 2, 3, 4])], [4, 4]),  # one token must be computed, so the last block is
        ([("a", [0, 2, 3, 4, 5]), ("a", [1, 2, 3, 4, 5]), ("a", [0, 2, 3, 4, 9])], [5, 5, 1]),
    ],
)
def test_whole_blocks_of_the_same_models_prompts_are_reused(
    prompts: list[tuple[str, list[int]]], computed: list[int]
) -> None:
    assert computed_tokens(prompts, 4) == computed


def test_savings_of_a_session() -> None:
    savings = count_savings(SESSION, block_size=4)
    assert (savings.shared, savings.unshared, savings.uncached) == (10 + 5 + 2, 10 + 13 + 6, 10 + 13 + 14)
    assert savings.count_agrees
    assert savings.factor == pytest.approx(29 / 17)


# The second of SESSION's answers is wrong.
RIGHT = [SESSION[0], replace(SESSION[1], expected="yes"), SESSION[2]]
UNCACHED = call("a", [*CONTEXT, 10, 11, 12, 13], 14)


def test_a_base_that_reports_something_else_is_noticed() -> None:
    assert not count_savings([*SESSION[:2], UNCACHED], block_size=4).count_agrees


OWN = {2: SESSION[1].answer}  # what Transformers answers to the wrong call
SERVED_WRONG = "call 2: b answered 'yes\\n', in Transformers, in float32, it answers 'no'"
COUNTED_WRONG = "computed 29 prompt tokens, by counting it should have been 17"


@pytest.mark.parametrize(
    ("calls", "in_transformers", "code", "said"),
    [
        (RIGHT, {}, 0, []),
        (SESSION, OWN, 0, []),
        (SESSION, {2: "no"}, 1, [SERVED_WRONG]),
        ([*RIGHT[:2], UNCACHED], {}, 1, [COUNTED_WRONG]),
        ([*SESSION[:2], UNCACHED], {2: "no"}, 1, [SERVED_WRONG, COUNTED_WRONG]),
    ],
)
def test_what_was_served_wrong_or_counted_wrong_is_an_error_that_the_exit_code_tells(
    calls: list[Call],
    in_transformers: dict[int, str],
    code: int,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = shortcomings(calls, count_savings(calls, block_size=4), in_transformers)
    assert [text in each for text, each in zip(said, found, strict=True)] == [True] * len(said)

    monkeypatch.setattr(demo, "FIGURES", tmp_path / "demo.json")
    monkeypatch.setattr(demo, "answers_in_transformers", lambda calls, deployment: in_transformers)
    output, deployment = io.StringIO(), SimpleNamespace(workers=SimpleNamespace(block_size=4))
    assert demo._show(calls, deployment, Console(file=output, width=120)) == code
    assert output.getvalue().count("error: ") == len(said)
    assert output.getvalue().count("note: ") == (in_transformers == OWN)
    assert len(json.loads((tmp_path / "demo.json").read_text())["calls"]) == 3


def test_a_modules_own_mistakes_are_named_as_such() -> None:
    assert own_mistakes(RIGHT, {}) is None
    assert own_mistakes(SESSION, {2: "no"}) is None
    text = own_mistakes(SESSION, OWN)
    assert text is not None
    assert "1 of 3 answers were wrong (call 2), as they are in Transformers" in text


def test_tables_show_rows_and_totals() -> None:
    output = io.StringIO()
    console = Console(file=output, width=120)
    console.print(calls_table(SESSION))
    console.print(savings_table(count_savings(SESSION, block_size=4)))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines()]
    assert ["2", "b", "13", "5", "8", "8", "2.0", "3.0", "4", "wrong"] in rows
    assert ["all", "", "37", "17", "20", "12", "6.0", "9.0", "", "2/3"] in rows
    assert "1.71x" in output.getvalue()
    assert "counted" in output.getvalue()


def test_json_is_complete_and_without_token_ids() -> None:
    data = json.loads(json.dumps(as_json(SESSION, count_savings(SESSION, block_size=4), OWN)))
    assert [row["correct"] for row in data["calls"]] == [True, False, True]
    assert [row["in_transformers"] for row in data["calls"]] == [None, "yes\n", None]
    assert "prompt_token_ids" not in data["calls"][0]
    assert data["prefill_tokens"]["unshared_counted"] == 29
