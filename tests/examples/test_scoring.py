import pytest

from examples.demo.scoring import is_right
from examples.demo.tasks import TASKS, held_out_rows


@pytest.mark.parametrize("task", TASKS)
def test_every_expected_answer_is_right_and_every_other_one_wrong(task: str) -> None:
    answers = sorted({row.item.answer for row in held_out_rows(task, items=60)})
    for answer in answers:
        assert [other for other in answers if is_right(task, other, answer)] == [answer]


EXPECTED = "SELECT COUNT(*) FROM orders WHERE city = 'Paris' AND product = 'clay pot';"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("SELECT COUNT(*) FROM orders WHERE product = 'clay pot' AND city = 'Paris'", True),
        ("SELECT COUNT(*) FROM orders WHERE product = 'clay pot';", False),
        ("SELECT COUNT(*) FROM orders WHERE city = 'Paris' AND product = 'clay mug';", False),
        ("SELECT 1 FROM nowhere;", False),
        ("SELECT 1; SELECT 2;", False),
        ("DROP TABLE orders;", False),
        ("", False),
        # Without an end this would run for hours.
        ("SELECT COUNT(*) FROM orders, orders AS b, orders AS c;", False),
    ],
)
def test_sql_is_right_when_it_returns_the_right_rows(answer: str, right: bool) -> None:
    assert is_right("sql", answer, EXPECTED) is right


def test_what_a_query_leaves_behind_does_not_change_the_next_one() -> None:
    for _ in range(40):  # more steps together than one query may take
        assert is_right("sql", EXPECTED, EXPECTED)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"quantity": 3, "city": "Rome"}', True),
        ('{"city": "Rome", "quantity": 4}', False),
        ('{"city": "Rome", "quantity": "3"}', False),
        ('{"city": "Rome"', False),
        ("Rome", False),
    ],
)
def test_json_is_right_when_it_parses_to_the_record(answer: str, right: bool) -> None:
    assert is_right("json", answer, '{"city": "Rome", "quantity": 3}') is right
