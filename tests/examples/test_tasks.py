import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from examples.demo.tasks import (
    CITIES,
    CUSTOMERS,
    PRODUCTS,
    TASKS,
    Task,
    draw_item,
    held_out_rows,
    session,
    training_rows,
    write_rows,
)
from prefillshare.training.dataset import read_examples
from tests.training.tiny import byte_tokenizer


@pytest.mark.parametrize("task", TASKS)
def test_no_held_out_combination_is_trained_but_all_its_parts_are(task: Task) -> None:
    rng = random.Random(1)
    trained = [draw_item(rng, task, "train") for _ in range(3000)]
    held_out = [draw_item(rng, task, "held_out") for _ in range(3000)]
    # Quantities are not part of a combination.
    answers = [{answer_without_quantity(item.answer) for item in items} for items in (trained, held_out)]
    if task == "sql":
        assert not answers[0] & answers[1]
    assert not {item.question for item in trained} & {item.question for item in held_out}
    text = " ".join(item.answer for item in trained)
    assert all(entity in text for entity in (*CUSTOMERS, *CITIES, *PRODUCTS))


def answer_without_quantity(answer: str) -> str:
    return answer.split(',"quantity"')[0]


@pytest.mark.parametrize("task", TASKS)
def test_nothing_of_the_held_out_rows_or_the_session_is_in_the_training_rows(task: Task) -> None:
    trained = "\n".join(row.to_json() for row in training_rows(task, batch_size=8))
    _, calls = session()
    for question in [row.item.question for row in held_out_rows(task)] + [call[1] for call in calls]:
        assert json.dumps(question)[1:-1] not in trained


@pytest.mark.parametrize("task", TASKS)
def test_the_rows_of_a_batch_share_their_context_and_the_next_batch_of_its_kind_goes_on_from_it(task: Task) -> None:
    rows = training_rows(task, batch_size=4)
    contexts = [rows[i].context for i in range(0, len(rows), 4)]
    assert [row.context for row in rows] == [context for context in contexts for _ in range(4)]
    short = {"json": [True, False], "sql": [True, True, True, False]}[task]
    assert [rows[i].is_short for i in range(0, len(rows), 4)] == short * (len(contexts) // len(short))
    for is_short in (True, False):
        kind = [contexts[i // 4] for i in range(0, len(rows), 4) if rows[i].is_short is is_short]
        grows = [after[: len(before)] == before for before, after in pairwise(kind)]
        assert grows == ([True, True, True, False] * len(kind))[: len(grows)]


def test_the_same_seed_draws_the_same() -> None:
    assert training_rows("sql", batch_size=2) == training_rows("sql", batch_size=2)
    assert training_rows("sql", batch_size=2) != training_rows("sql", batch_size=2, seed=1)
    assert session() == session()


@pytest.mark.parametrize("items", [2, 25, 100])
def test_half_of_the_held_out_items_have_a_sessions_context(items: int) -> None:
    rows = held_out_rows("json", items=items)
    assert len(rows) == items
    assert sum(row.is_short for row in rows) == items // 2


def test_the_session_alternates_between_the_modules() -> None:
    context, calls = session()
    assert [message["role"] for message in context] == ["system"]
    assert [task for task, _, _ in calls] == list(TASKS) * 3
    assert len({question for _, question, _ in calls}) == 6


def test_written_rows_are_what_the_trainer_reads(tmp_path: Path) -> None:
    rows = training_rows("json", batch_size=1)
    write_rows(tmp_path / "data" / "json.jsonl", rows)
    tokenizer = byte_tokenizer()
    examples = read_examples(tmp_path / "data" / "json.jsonl", tokenizer).examples
    assert [tokenizer.decode(example.ids[example.spans[0][0] : -1]) for example in examples] == [
        row.item.answer for row in rows
    ]
