import json
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads.family import load_family
from prefillshare.workloads.generate import generate
from prefillshare.workloads.recorded import read_sessions, write_sessions
from tests.workloads.tokenisers import characters, words

COMMON = {"preamble": "Solve it.", "instructions": {"planner": "You plan."}}
TURNS = [
    {"role": "planner", "observed": "Question: why", "output": "look it up"},
    {"role": "actor", "output": "Search"},
    {"role": "planner", "observed": "it is so", "output": "so", "think_s": 1.5},
    {"role": "planner", "observed": "Question: why", "output": "again", "restarts": True},
]


def written(folder: Path, *rows: object) -> Path:
    file = folder / "sessions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_sessions_are_read_with_their_lengths(tmp_path: Path) -> None:
    workload = read_sessions(written(tmp_path, COMMON, {"session": "a", "turns": TURNS}), words)
    assert (workload.name, workload.preamble, workload.preamble_tokens) == ("sessions", "Solve it.", 3)
    (session,) = workload.sessions
    assert session.name == "a"
    first, second, third, again = session.turns
    assert (first.observed_tokens, first.output_tokens, first.instructions, first.instructions_tokens) == (
        3,
        3,
        "You plan.",
        3,
    )
    assert (second.observed, second.observed_tokens, second.instructions) == ("", 0, "")
    assert third.think_s == 1.5
    assert again.restarts
    assert not third.restarts


def test_lengths_may_stand_in_place_of_texts(tmp_path: Path) -> None:
    turn = {"role": "a", "observed_tokens": 100, "output_tokens": 7}
    file = written(tmp_path, {"session": "a", "turns": [turn]}, {"session": "b", "turns": [turn]})
    first, second = (session.turns[0] for session in read_sessions(file, words).sessions)
    assert (first.observed_tokens, first.output_tokens) == (100, 7) == (len(words(first.observed)), 7)
    assert first.observed != second.observed
    assert read_sessions(file, words).sessions[0].turns[0] == first


def test_texts_need_no_tokenizer_of_words(tmp_path: Path) -> None:
    file = written(tmp_path, {"session": "a", "turns": TURNS})
    assert read_sessions(file, characters).sessions[0].turns[2].output_tokens == 2


def test_what_is_written_is_read(tmp_path: Path) -> None:
    workload = generate(load_family("reflexion"), 3, words)
    file = tmp_path / "reflexion.jsonl"
    write_sessions(file, workload)
    assert read_sessions(file, words) == workload


def test_roles_are_declared_by_their_instructions_and_keep_their_order(tmp_path: Path) -> None:
    common = {"instructions": {"critic": "You judge.", "actor": "You act."}}
    workload = read_sessions(written(tmp_path, common, {"session": "a", "turns": TURNS}), words)
    assert workload.roles() == ("critic", "actor", "planner")
    write_sessions(tmp_path / "again.jsonl", workload)
    assert read_sessions(tmp_path / "again.jsonl", words).roles() == workload.roles()


def test_sessions_stand_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    rows = [{"session": name, "start_s": at, "turns": TURNS} for name, at in (("late", 107.5), ("early", 100.0))]
    workload = read_sessions(written(tmp_path, *rows), words)
    assert [session.name for session in workload.sessions] == ["early", "late"]
    assert workload.starts() == (0.0, 7.5)
    write_sessions(tmp_path / "again.jsonl", workload)
    assert read_sessions(tmp_path / "again.jsonl", words).sessions == workload.sessions


def test_a_turn_may_have_instructions_of_its_own(tmp_path: Path) -> None:
    own = {**TURNS[0], "instructions": "You plan well."}
    workload = read_sessions(written(tmp_path, COMMON, {"session": "a", "turns": [TURNS[0], own]}), words)
    assert [turn.instructions for turn in workload.sessions[0].turns] == ["You plan.", "You plan well."]
    write_sessions(tmp_path / "again.jsonl", workload)
    assert read_sessions(tmp_path / "again.jsonl", words).sessions == workload.sessions


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"session": "a", "turns": [TURNS[0], {"role": "b"}]}],
            r"line 1: field turns\.1: .*`output` or `output_tokens`",
        ),
        ([{"session": "a", "turns": []}], r"line 1: field turns: .*at least 1"),
        ([{"session": "a", "turns": [{**TURNS[0], "think_s": -1}]}], r"field turns\.0\.think_s: .*found -1"),
        ([{"session": "a", "turns": [{**TURNS[0], "observed_tokens": 3}]}], "not both"),
        ([{"session": "a", "turns": [{**TURNS[0], "role": ""}]}], r"field turns\.0\.role"),
        ([{"session": "a", "turns": TURNS, "oops": 1}], "field oops"),
        ([{"session": "a"}], "a row is either a session"),
        ([{"session": "a", "turns": TURNS, "preamble": "p"}], "a row is either a session"),
        ([{"session": "a", "turns": TURNS}] * 2, "line 2, field session: 'a' is there already"),
        ([{"session": "a", "turns": TURNS}, COMMON], "line 2: .*must be the first row"),
        ([COMMON, COMMON], "line 2: .*must be the first row"),
        ([COMMON], "no sessions"),
        ([COMMON | {"start_s": 1.0}], "a row is either a session"),
        (
            [{"session": "a", "start_s": 1.0, "turns": TURNS}, {"session": "b", "turns": TURNS}],
            "line 2, field start_s: all sessions have one, or none",
        ),
    ],
)
def test_what_is_wrong_is_said_by_line_and_field(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_sessions(written(tmp_path, *rows), words)
