from dataclasses import replace

import pytest

from prefillshare.workloads.session import Session, Turn, Workload, new_tokens, prompt_tokens, within


def turn(role: str, observed: int, output: int, **fields) -> Turn:
    return Turn(role, "o" * observed, observed, "a" * output, output, 0.0, f"You are {role}.", 3, **fields)


def test_a_prompt_holds_what_was_seen_and_said_and_the_roles_instructions() -> None:
    session = Session("s", (turn("planner", 10, 4), turn("actor", 0, 2), turn("planner", 7, 5)))
    workload = Workload("w", "p" * 100, 100, (session,))
    assert list(prompt_tokens(workload, session)) == [113, 117, 126]
    assert workload.roles() == ("planner", "actor")


def test_a_new_trial_keeps_the_preamble_alone() -> None:
    session = Session("s", (turn("planner", 10, 4), turn("planner", 12, 4, restarts=True), turn("actor", 0, 1)))
    assert list(prompt_tokens(Workload("w", "", 100, (session,)), session)) == [113, 115, 119]


def test_what_no_earlier_prompt_held_is_new() -> None:
    turns = (turn("planner", 10, 4), turn("actor", 0, 2), turn("planner", 7, 5))
    assert list(new_tokens(Session("s", turns))) == [10 + 3, 4 + 0 + 3, 2 + 7 + 3]


@pytest.mark.parametrize(
    ("beginnings", "new"),
    [
        (("why", "why not"), [1, 1]),
        (("why not", "why"), [2, 0]),
        (("why", "how"), [1, 1]),
        (("why not", "why not so", "why not such a thing"), [2, 1, 3]),
        (("one two", "three four", "one two five six"), [2, 2, 2]),
        (("ab cd", "ab xy"), [2, 1]),  # 3 of 5 characters, in whole tokens
        (("", ""), [0, 0]),
    ],
)
def test_a_new_trial_knows_what_an_earlier_one_began_with(beginnings: tuple[str, ...], new: list[int]) -> None:
    turns = [
        Turn("r", text, len(text.split()), "so", 1, 0.0, "", 0, restarts=number > 0)
        for number, text in enumerate(beginnings)
    ]
    assert list(new_tokens(Session("s", tuple(turns)))) == new
    # What was put out before is no part of it, and what is put out then is new.
    again = Session("s", (*turns, replace(turns[0], observed="", observed_tokens=0)))
    assert list(new_tokens(again))[-1] == 1


def test_a_session_may_begin_with_a_restart() -> None:
    assert list(new_tokens(Session("s", (turn("planner", 10, 4, restarts=True),)))) == [13]


@pytest.mark.parametrize(
    ("field", "value"), [("observed_tokens", -1), ("output_tokens", 0), ("think_s", -0.5), ("instructions_tokens", -2)]
)
def test_what_cannot_be_is_refused_by_name(field: str, value: float) -> None:
    fields = {
        "role": "planner",
        "observed": "",
        "observed_tokens": 0,
        "output": "x",
        "output_tokens": 1,
        "think_s": 0.0,
        "instructions": "",
    }
    with pytest.raises(ValueError, match=f"{field} must .*{value}"):
        Turn(**{**fields, field: value})


def test_a_session_has_turns() -> None:
    with pytest.raises(ValueError, match="'empty' has no turns"):
        Session("empty", ())


def test_roles_that_are_declared_come_first_called_or_not() -> None:
    session = Session("s", (turn("actor", 1, 1), turn("guest", 1, 1)))
    assert Workload("w", "", 0, (session,), declared=("planner", "actor")).roles() == ("planner", "actor", "guest")


def test_starts_are_told_from_the_first_and_only_if_all_are_known() -> None:
    sessions = tuple(Session(f"s{start}", (turn("r", 1, 1),), start) for start in (107.0, 105.5, 110.0))
    workload = Workload("w", "", 0, sessions)
    assert workload.starts() == (1.5, 0.0, 4.5)
    assert replace(workload, sessions=(*sessions, replace(sessions[0], start_s=None))).starts() is None
    assert replace(workload, sessions=()).starts() is None
    assert within(workload, 1000).starts() == workload.starts()
