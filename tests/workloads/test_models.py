from prefillshare.workloads.models import cast
from prefillshare.workloads.session import Session, Turn

ROLES = ("planner", "actor", "evaluator")
SESSION = Session("s", tuple(Turn(role, "", 0, "x", 1, 0.0, "") for role in [*["planner", "actor"] * 3, "evaluator"]))


def models(count: int) -> list[str]:
    return [f"m{number}" for number in range(count)]


def test_every_role_has_its_own_model() -> None:
    assert cast(SESSION, ROLES, models(3)) == ("m0", "m1", "m0", "m1", "m0", "m1", "m2")


def test_roles_share_models_where_there_are_fewer() -> None:
    assert cast(SESSION, ROLES, models(1)) == ("m0",) * 7
    assert cast(SESSION, ROLES, models(2)) == ("m0", "m1", "m0", "m1", "m0", "m1", "m0")


def test_a_role_goes_round_among_its_models_where_there_are_more() -> None:
    assert cast(SESSION, ROLES, models(4)) == ("m0", "m1", "m3", "m1", "m0", "m1", "m2")
    assert cast(SESSION, ROLES, models(8)) == ("m0", "m1", "m3", "m4", "m6", "m7", "m2")


def test_a_role_keeps_its_model_where_another_is_not_called() -> None:
    without = Session("s", tuple(turn for turn in SESSION.turns if turn.role != "actor"))
    assert cast(without, ROLES, models(4)) == ("m0", "m3", "m0", "m2")
