"""That the experiment's items are what the project's scorers take; the scorers have tests of their own."""

import pytest

from experiments.accuracy.items import Item
from experiments.accuracy.scorers import is_right

SETUP = ["CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'x')"]


@pytest.mark.parametrize(
    ("scorer", "item", "right", "wrong"),
    [
        ("number", Item([], "", "2 * 9 = 18\n#### 18"), "#### 18.0", "180"),
        ("sql", Item([], "", "SELECT a FROM t WHERE b = 'x'", None, {"setup": SETUP}),
         "select a from t where b != 'y'", "SELECT a FROM t"),
        ("call", Item([], "", [{"f": {"x": [1], "n": ["", 2]}}]), "f(x=1)", "f(x=2)"),
    ],
)  # fmt: skip
def test_items_are_scored(scorer: str, item: Item, right: str, wrong: str) -> None:
    assert is_right(scorer, right, item)
    assert not is_right(scorer, wrong, item)
