import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import Records, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import many, model_names, rough_tokenise, shapes_of
from prefillshare.workloads.arrivals import Closed
from prefillshare.workloads.mooncake import read_trace
from prefillshare.workloads.session import Session, Turn, Workload, new_tokens
from tests.simulate.shapes import PROFILE


def workload(*roles: str) -> Workload:
    turns = tuple(Turn(role, "", 10, "", 5, 0.0, "") for role in roles)
    return Workload("w", "", 30, (Session("s", turns), Session("t", turns[:2])))


@pytest.mark.parametrize(
    ("models", "called"),
    [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 0, 1]), (3, [0, 1, 0, 2, 1]), (6, [0, 1, 3, 2, 4]), (4, [0, 1, 3, 2, 1])],
)
def test_roles_are_spread_over_the_models(models: int, called: list[int]) -> None:
    names = model_names(models)
    shapes = shapes_of(workload("a", "b", "a", "c", "b"), names)
    assert [call.model for call in shapes[0]] == [names[index] for index in called]
    assert [len(shape) for shape in shapes] == [5, 2]
    assert shapes[0][0].context == 40


def test_roles_that_no_session_has_keep_their_models() -> None:
    names = model_names(4)
    declared = replace(workload("b", "c"), declared=("a", "b", "c"))
    assert [call.model for call in shapes_of(declared, names)[0]] == [names[1], names[2]]


def test_many_sessions_are_drawn_and_the_same_ones_again() -> None:
    shapes = shapes_of(workload("a", "b", "c"), model_names(3))
    drawn = list(many(shapes, 50, seed=1))
    assert len(drawn) == 50
    assert set(drawn) == set(shapes)
    assert drawn == list(many(shapes, 50, seed=1)) != list(many(shapes, 50, seed=2))


def test_what_all_sessions_of_a_trace_begin_with_is_computed_once(tmp_path: Path) -> None:
    requests = [
        {"timestamp": 1000 * n, "input_length": 4608, "output_length": 20, "hash_ids": [*range(8), 100 + n]}
        for n in range(60)
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    read = read_trace(file, rough_tokenise)
    names, records = model_names(1), Records()
    sessions, layout = shapes_of(read, names), Layout("shared", names)
    Simulation(layout, PROFILE, sessions, Closed(4), records, preamble_tokens=read.preamble_tokens).run()
    at_best = 59 * 8 / (60 * 9)
    # The first four come before any of them is computed.
    assert at_best - 0.06 < summarise(records)["hit_ratio"] <= at_best
    assert sum(sum(new_tokens(session)) for session in read.sessions) == 60 * 512


def test_tokens_are_counted_roughly() -> None:
    assert len(rough_tokenise("Search[Pete Doherty], a member of more bands.")) == 13
    assert rough_tokenise("") == []
