"""What holds for every family: one seed one draw, nothing held out is trained on, gold answers are right."""

import pytest

from experiments.accuracy.families import FAMILIES
from experiments.accuracy.items import Data, Item, Size
from experiments.accuracy.scorers import is_right

SIZE = Size(train=120, validation=30, test=60)


def questions(items: list[Item]) -> set[str]:
    return {item.prompt[-1]["content"] for item in items}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, seed: int = 0) -> Data:
    return FAMILIES[name].build(seed, SIZE)


def test_sizes_are_as_asked_and_held_out_items_differ(name: str) -> None:
    data = build(name)
    assert (len(data.train), len(data.validation), len(data.test)) == (120, 30, 60)
    assert len(questions(data.validation)) == 30
    assert len(questions(data.test)) == 60


def test_no_question_is_in_two_parts(name: str) -> None:
    data = build(name)
    train, validation, test = map(questions, (data.train, data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_one_seed_is_one_draw(name: str) -> None:
    assert build(name).digest() == build(name).digest()
    assert build(name).digest() != build(name, seed=1).digest()


def test_the_digest_is_of_the_answers_too(name: str) -> None:
    data = build(name)
    first = data.test[0]
    changed = Data(data.train, data.validation, [Item(first.prompt, "", first.expected), *data.test[1:]])
    assert changed.digest() != data.digest()


def test_gold_answers_are_right_and_those_of_another_item_are_not(name: str) -> None:
    data, scorer = build(name), FAMILIES[name].scorer
    assert all(is_right(scorer, item.answer, item) for item in data.test)
    by_chance = sum(is_right(scorer, other.answer, item) for item, other in zip(data.test, data.test[1:], strict=False))
    assert by_chance <= 4
