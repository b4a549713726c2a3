"""The SQL family: wordings are held out, and its databases tell queries apart."""

import re

from experiments.accuracy.families import sql
from experiments.accuracy.families.sql_wordings import WORDINGS
from experiments.accuracy.items import Item, Size
from experiments.accuracy.scorers import is_right


def _pattern(wording: str) -> re.Pattern[str]:
    words = {"name": r"\w+(?: \w+)?", "value": r"\w+(?: \w+)?"}
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda part: words.get(part[1], r"\w+"), re.escape(wording)))


def wordings(items: list[Item]) -> set[str]:
    patterns = {text: _pattern(text) for texts in WORDINGS.values() for text in texts}
    questions = [item.prompt[-1]["content"].split("\n\n")[1] for item in items]
    return {text for text, pattern in patterns.items() if any(pattern.fullmatch(question) for question in questions)}


def test_no_wording_is_in_two_parts_and_the_seed_decides_which_are_held_out() -> None:
    data = sql.build(0, Size(600, 200, 300))
    train, test, validation = wordings(data.train), wordings(data.test), wordings(data.validation)
    assert (len(train), len(validation), len(test)) == (4 * len(WORDINGS), 2 * len(WORDINGS), 2 * len(WORDINGS))
    assert len(train | validation | test) == 8 * len(WORDINGS)
    assert wordings(sql.build(1, Size(600, 200, 300)).test) != test


def test_wordings_are_eight_a_kind_and_all_different() -> None:
    assert WORDINGS.keys() == sql._QUERIES.keys()
    assert {len(texts) for texts in WORDINGS.values()} == {8}
    assert len({text for texts in WORDINGS.values() for text in texts}) == 8 * len(WORDINGS)


def test_a_near_miss_is_wrong() -> None:
    """Another column, another bound, another order: what a model gets wrong shows in what sqlite returns."""
    data = sql.build(0, Size(1, 1, 300))
    swaps = (("MAX(", "MIN("), (" DESC", " ASC"), (" > ", " < "), ("SUM(", "AVG("), ("DISTINCT ", ""))
    caught = tried = 0
    for item in data.test:
        for old, new in swaps:
            if old in item.answer:
                tried += 1
                caught += not is_right("sql", item.answer.replace(old, new), item)
    assert tried > 100
    assert caught / tried > 0.97
