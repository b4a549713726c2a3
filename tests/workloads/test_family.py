import json
import random

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads.family import draw_quantity, draw_weighted, family_names, load_family, parse_family

SMALL = {
    "name": "small",
    "about": "",
    "tokenizer": "any",
    "preamble_tokens": 10,
    "instructions": {"planner": "plan"},
    "step": [{"role": "planner", "observes": True}],
    "trials": {"1": 1},
    "first_steps": {"true": {"2": 1}},
    "lengths": {"question": [1, 2], "observation": [3, 4], "planner": [5, 6]},
    "think_s": [0, 1],
}


def test_three_families_ship_with_the_project() -> None:
    assert family_names() == ("react", "reflexion", "tool_heavy")
    assert load_family("reflexion").roles == ("planner", "actor", "evaluator", "reflector")
    assert len(load_family("tool_heavy").roles) == 4


def test_an_unknown_family_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no family 'sql'; there are react, reflexion, tool_heavy"):
        load_family("sql")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": {**SMALL["lengths"], "planner": [6, 5]}}, r"small: lengths\.planner: .*must not descend"),
        ({"lengths": {"question": [1, 2], "planner": [1, 2]}}, r"lengths\.observation: missing"),
        ({"closing": "judge"}, r"instructions\.judge: missing"),
        ({"trials": {"1": 1, "3": 2}}, "first_steps: nothing for"),
        ({"trials": {"1": 0}}, r"trials\.1"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_family_that_cannot_be_drawn_is_refused(change: dict, message: str) -> None:
    assert parse_family(json.dumps(SMALL), "small").preamble_tokens == 10
    with pytest.raises(UserError, match=message):
        parse_family(json.dumps({**SMALL, **change}), "small")


def test_quantities_follow_their_quantiles() -> None:
    draw = random.Random(0)
    values = [draw_quantity((0.0, 10.0, 100.0), draw) for _ in range(4000)]
    assert 0 <= min(values) < max(values) <= 100
    assert 0.47 < sum(value < 10 for value in values) / 4000 < 0.53
    assert 0.22 < sum(value > 55 for value in values) / 4000 < 0.28


def test_weights_are_kept() -> None:
    draw = random.Random(0)
    values = [draw_weighted({1: 1, 7: 3}, draw) for _ in range(4000)]
    assert set(values) == {1, 7}
    assert 0.72 < sum(value == 7 for value in values) / 4000 < 0.78
