"""Word problems: what is held out, and that the working is right."""

import re
from itertools import combinations

import pytest

from experiments.accuracy.families import arithmetic, gsm, gym
from experiments.accuracy.items import Data, Item, Size
from prefillshare.errors import UserError

SIZE = Size(600, 100, 200)
_SUM = re.compile(r"([\d*+ ]+)= (\d+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def data() -> Data:
    return arithmetic.build(0, SIZE)


def question(item: Item) -> str:
    return item.prompt[-1]["content"]


def pairs(items: list[Item]) -> set[frozenset[str]]:
    found = [re.findall(r"\d+ ([a-z ]+?)s[,?]", question(item)) for item in items if "legs" in question(item)]
    return {frozenset(pair) for animals in found for pair in combinations(animals, 2)}


def wordings(items: list[Item]) -> set[str]:
    return {re.sub(r"\d\d:\d\d", "?", question(item)) for item in items if "legs" not in question(item)}


def test_pairs_of_animals_are_held_out(data: Data) -> None:
    train, validation, test = map(pairs, (data.train, data.validation, data.test))
    assert min(map(len, (train, validation, test))) > 30
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_wordings_are_held_out(data: Data) -> None:
    train, validation, test = map(wordings, (data.train, data.validation, data.test))
    assert (len(train), len(validation), len(test)) == (6, 2, 2)
    assert len(train | validation | test) == 10


def test_the_working_is_right_and_leads_to_the_result(data: Data) -> None:
    for item in data.train:
        sums = _SUM.findall(item.answer.replace(": ", ":\n"))
        assert all(eval(left) == int(right) for left, right in sums)
        assert item.answer.splitlines()[-1] == f"#### {sums[-1][1]}"


def test_minutes_are_those_between_the_times(data: Data) -> None:
    for item in data.test:
        times = [int(hours) * 60 + int(minutes) for hours, minutes in re.findall(r"(\d\d):(\d\d)", question(item))]
        if times:
            assert item.answer.endswith(f"#### {times[1] - times[0]}")


def test_parts_are_alike(data: Data) -> None:
    """Half of each are legs, of two animals."""
    for items in (data.train, data.validation, data.test):
        legs = [item for item in items if "legs" in question(item)]
        assert 0.35 < len(legs) / len(items) < 0.65
        assert all(item.answer.count("*") == 2 for item in legs)


def test_templates_of_gsm_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = gym.load("arithmetic.gsm_symbolic.gsm_symbolic")
    load = module.GSMSymbolicDataset._load_generators

    def named(self: object) -> dict[int, gsm.Generator]:
        def of(number: int, generator: gsm.Generator) -> gsm.Generator:
            def draw(rng: object, difficulty: float) -> dict[str, object]:
                example = generator(rng, difficulty)  # type: ignore[arg-type]
                return {**example, "question": f"{number}: {example['question']}"}

            return draw

        return {number: of(number, generator) for number, generator in load(self).items()}

    monkeypatch.setattr(module.GSMSymbolicDataset, "_load_generators", named)
    data = gsm.build(0, SIZE)
    train, validation, test = (
        {question(item).split(":")[0] for item in items} for items in (data.train, data.validation, data.test)
    )
    assert not (train | validation) & test
    assert not train & validation
    assert len(train) > 35


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install"):
        arithmetic.build(0, Size(1, 1, 1))
