import json
import random

import pytest

from prefillshare.workloads.family import CallShape, load_family, parse_family
from prefillshare.workloads.fit import Roles, fit, ks_distance, lengths, quantiles
from prefillshare.workloads.generate import generate
from prefillshare.workloads.session import Workload
from tests.workloads.tokenisers import words

ROLES = Roles((CallShape(role="planner", observes=True), CallShape(role="actor")), "evaluator", "reflector")


@pytest.fixture(scope="module")
def drawn() -> Workload:
    return generate(load_family("reflexion"), 300, words)


def test_a_refit_of_drawn_sessions_is_the_family_that_they_were_drawn_from(drawn: Workload) -> None:
    family = load_family("reflexion")
    text = json.dumps(fit(drawn, ROLES, about="", tokenizer="words", tool_seconds=(0.2, 2.0)))
    again = parse_family(text, "again")
    assert (again.step, again.closing, again.between) == (family.step, family.closing, family.between)
    assert again.preamble_tokens == family.preamble_tokens
    assert set(again.lengths) == set(family.lengths)
    for weights, before in ((again.trials, family.trials), (again.next_steps[6], family.next_steps[6])):
        for value, weight in before.items():
            share = weights.get(value, 0) / sum(weights.values())
            assert share == pytest.approx(weight / sum(before.values()), abs=0.1)
    assert again.answered[6] == pytest.approx(family.answered[6], abs=0.06)
    redrawn = lengths(generate(again, 300, words, seed=1), ROLES)
    for quantity, values in lengths(drawn, ROLES).items():
        assert ks_distance(values, redrawn[quantity]) < 0.12, quantity


def test_quantities_are_told_apart(drawn: Workload) -> None:
    found = lengths(drawn, ROLES)
    session = drawn.sessions[0]
    assert len(found["question"]) == len(drawn.sessions)
    assert len(found["prompt of a call"]) == sum(len(session.turns) for session in drawn.sessions)
    assert found["calls of a session"][0] == len(session.turns)
    assert found["output of a session"][0] == sum(turn.output_tokens for turn in session.turns)
    assert sum(found["finding"]) / len(found["finding"]) > 1.5 * sum(found["observation"]) / len(found["observation"])


def test_quantiles_lie_between_the_values() -> None:
    assert quantiles([3, 1, 2], points=5) == [1, 1.5, 2, 2.5, 3]
    assert quantiles([7], points=3) == [7, 7, 7]


def test_the_distance_of_distributions() -> None:
    assert ks_distance([1, 2, 3], [1, 2, 3]) == 0
    assert ks_distance([1, 2], [3, 4]) == 1
    assert ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    draw = random.Random(0)
    assert ks_distance([draw.random() for _ in range(3000)], [draw.random() for _ in range(3000)]) < 0.04
