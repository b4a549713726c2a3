import pytest

from prefillshare.simulate.workload import many, model_names, rough_tokenise, shapes_of
from prefillshare.workloads.session import Session, Turn, Workload


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


def test_many_sessions_are_drawn_and_the_same_ones_again() -> None:
    shapes = shapes_of(workload("a", "b", "c"), model_names(3))
    drawn = list(many(shapes, 50, seed=1))
    assert len(drawn) == 50
    assert set(drawn) == set(shapes)
    assert drawn == list(many(shapes, 50, seed=1)) != list(many(shapes, 50, seed=2))


def test_tokens_are_counted_roughly() -> None:
    assert len(rough_tokenise("Search[Pete Doherty], a member of more bands.")) == 13
    assert rough_tokenise("") == []
