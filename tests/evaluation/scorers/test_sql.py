import time
from typing import Any

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS, sql

SETUP = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, city TEXT, price REAL);
INSERT INTO orders (customer, city, price) VALUES ('Anna', 'Oxford', 0.1), ('Ben', 'Rome', 0.2), ('Anna', 'Rome', 0.3);
"""
score = SCORERS["sql"]


def item(expected: str, setup: Any = SETUP) -> Item:
    return Item("question", expected, fields={"setup": setup})


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("SELECT customer FROM orders WHERE city = 'Rome'", True),
        ("select Customer from ORDERS where city='Rome' order by id desc;", True),
        ("```sql\nSELECT customer FROM orders WHERE city = 'Rome';\n```", True),
        ("WITH r AS (SELECT * FROM orders WHERE city = 'Rome') SELECT customer FROM r", True),
        ("-- the Romans\nSELECT customer FROM orders WHERE city = 'Rome'", True),
        ("SELECT customer FROM orders", False),
        ("SELECT DISTINCT customer FROM orders WHERE city = 'Oxford'", False),
        ("SELECT customer, id FROM orders WHERE city = 'Rome'", False),
        ("SELECT nothing FROM orders", False),
        ("SELECT customer FROM orders WHERE city = 'Rome'; SELECT 1", False),
        ("VALUES ('Ben'), ('Anna')", False),
        ("The customers are Ben and Anna", False),
        ("SELECT '\x00'", False),
        ("\ud800", False),
        ("", False),
    ],
)
def test_a_query_is_judged_by_what_it_returns(answer: str, right: bool) -> None:
    assert score(answer, item("SELECT customer FROM orders WHERE city = 'Rome'")) is right


def test_rows_that_occur_twice_count_twice() -> None:
    assert not score("SELECT DISTINCT customer FROM orders", item("SELECT customer FROM orders"))


def test_order_matters_only_where_it_is_asked_for() -> None:
    ordered = item("SELECT id FROM orders ORDER BY id DESC")
    assert score("SELECT id FROM orders ORDER BY -id", ordered)
    assert not score("SELECT id FROM orders ORDER BY id", ordered)
    assert score("SELECT id FROM orders ORDER BY id DESC", item("SELECT id FROM orders"))


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", False),
        ("SELECT rank() OVER (PARTITION BY a ORDER BY (b)) FROM t", False),
        ("SELECT 'ORDER BY' FROM t -- ORDER BY", False),
        ("SELECT ')' FROM (SELECT a FROM t) order\n by a", True),
    ],
)
def test_an_order_by_of_the_query_itself_is_found(query: str, ordered: bool) -> None:
    assert sql.is_ordered(query) is ordered


def test_numbers_are_compared_without_their_last_digits() -> None:
    assert score("SELECT 0.3 + 0.2 + 0.1", item("SELECT SUM(price) FROM orders"))
    assert score("SELECT 3.0", item("SELECT COUNT(*) FROM orders"))
    assert not score("SELECT 0.60001", item("SELECT SUM(price) FROM orders"))


def test_an_answer_has_to_be_right_on_every_database() -> None:
    other = SETUP.replace("'Ben', 'Rome'", "'Ben', 'Paris'")
    expected = "SELECT COUNT(*) FROM orders WHERE city = 'Rome'"
    by_chance = "SELECT COUNT(DISTINCT customer) FROM orders"
    assert score(by_chance, item(expected))
    assert not score(by_chance, item(expected, [SETUP, other]))
    assert score("SELECT SUM(city = 'Rome') FROM orders", item(expected, [SETUP, other]))


@pytest.mark.parametrize(
    "answer",
    [
        "DELETE FROM orders",
        "WITH x AS (SELECT 1) DELETE FROM orders",
        "INSERT INTO orders (city) VALUES ('Rome') RETURNING customer",
        "WITH x AS (SELECT * FROM orders) INSERT INTO orders (customer) SELECT customer FROM x RETURNING customer",
        "PRAGMA query_only = OFF",
        "ATTACH DATABASE '{file}' AS other",
        "SELECT load_extension('{file}')",
        "SELECT writefile('{file}', 'x')",
        "VACUUM INTO '{file}'",
    ],
)
def test_what_writes_is_wrong_and_not_run(answer: str, tmp_path: Any) -> None:
    file = tmp_path / "written"
    everything = item("SELECT customer FROM orders")
    assert not score(answer.format(file=file), everything)
    assert not file.exists()
    assert score("SELECT customer FROM orders", everything)


@pytest.mark.parametrize(
    "answer",
    [
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT SUM(x) FROM n",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
        "SELECT COUNT(*) FROM " + ", ".join(f"orders o{n}" for n in range(40)),
        "SELECT length(zeroblob(2000000000))",
        "SELECT length(group_concat(hex(zeroblob(400000)))) FROM orders a, orders b, orders c",
    ],
)
def test_what_would_not_end_or_fit_is_stopped(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "SECONDS", 0.5)
    started = time.monotonic()
    assert not score(answer, item("SELECT COUNT(*) FROM orders"))
    assert time.monotonic() - started < 5


def test_mistakes_in_the_data_are_found_beforehand() -> None:
    for expected, setup, field in (
        ("DELETE FROM orders", SETUP, "expected"),
        ("SELECT nothing FROM orders", SETUP, "expected"),
        ("SELECT 1", "CREATE TABLE", "setup"),
        ("SELECT 1", None, "setup"),
        ("SELECT 1", [], "setup"),
    ):
        with pytest.raises(BadField, match=f"field '{field}'"):
            score.check(item(expected, setup))
    score.check(item("SELECT 1 FROM orders"))
