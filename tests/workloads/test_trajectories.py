import json
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads.trajectories import ROLES, Family, read_trajectories
from tests.workloads.tokenisers import words

SEARCH = {"thought": "so far", "action": "Search[x]", "observation": "x is y"}
FINISH = {"thought": "so y", "action": "Finish[y]", "observation": "Answer is INCORRECT"}


def row(question: str, *steps: dict, reflections: tuple[str, ...] = ()) -> dict:
    return {"question": question, "steps": steps or [SEARCH, FINISH], "reflections": reflections, "outcome": "any"}


def read(folder: Path, family: Family, *rows: dict):
    file = folder / "trajectories.jsonl"
    examples = [row("example 1"), row("example 2")]
    file.write_text("".join(json.dumps(each) + "\n" for each in (*examples, *rows)))
    return read_trajectories(file, family, words)


def test_reflexion_trials_of_a_question_are_one_session(tmp_path: Path) -> None:
    workload = read(tmp_path, "reflexion", row("why"), row("why", reflections=("look again",)))
    (session,) = workload.sessions
    trial = ["planner", "actor", "planner", "actor", "evaluator"]
    assert [turn.role for turn in session.turns] == [*trial, "reflector", *trial]
    assert [turn.restarts for turn in session.turns] == [False] * 6 + [True] + [False] * 4
    assert session.turns[5].output == "look again"
    assert session.turns[6].observed == "Question: why\nLearnt before: look again"
    assert workload.roles() == tuple(ROLES)


def test_a_turn_has_the_recorded_texts_and_their_lengths(tmp_path: Path) -> None:
    planner, actor, after_tool, *_, evaluator = read(tmp_path, "react", row("why")).sessions[0].turns
    assert (planner.observed, planner.output) == ("Question: why", "Thought: so far")
    assert (planner.observed_tokens, planner.output_tokens) == (3, 4)
    assert (actor.observed, actor.output, actor.think_s) == ("", "Action: Search[x]", 0.0)
    assert after_tool.observed == "Observation: x is y"
    assert 0.2 <= after_tool.think_s <= 2.0
    # What the environment said to the answer is what the evaluator says, so nobody observes it.
    assert (evaluator.observed, evaluator.output) == ("", "Answer is INCORRECT")
    assert planner.instructions == ROLES["planner"]
    assert planner.instructions_tokens == len(words(ROLES["planner"]))


def test_react_trials_are_sessions_of_their_own(tmp_path: Path) -> None:
    workload = read(tmp_path, "react", row("why"), row("why"), row("how"))
    assert [session.name for session in workload.sessions] == ["react-0", "react-1", "react-2"]
    assert not any(turn.restarts for session in workload.sessions for turn in session.turns)


def test_a_trial_without_an_answer_is_not_judged_and_its_end_is_reflected_on(tmp_path: Path) -> None:
    first = row("why", SEARCH, {**SEARCH, "observation": "the end"})
    session = read(tmp_path, "reflexion", first, row("why", reflections=("hurry",))).sessions[0]
    assert [turn.role for turn in session.turns[:5]] == ["planner", "actor", "planner", "actor", "reflector"]
    assert session.turns[4].observed == "Observation: the end"
    assert session.turns[4].think_s > 0


def test_nothing_new_learnt_is_no_call(tmp_path: Path) -> None:
    rows = row("why", reflections=("a",)), row("why", reflections=("a",)), row("why", reflections=("a", "b", "c"))
    turns = read(tmp_path, "reflexion", *rows).sessions[0].turns
    assert [turn.output for turn in turns if turn.role == "reflector"] == ["b\nc"]


def test_the_first_two_questions_are_everybodys_examples(tmp_path: Path) -> None:
    workload = read(tmp_path, "reflexion", row("why"))
    assert "Question: example 2\nThought: so far\nAction: Search[x]\nObservation: x is y" in workload.preamble
    assert "why" not in workload.preamble
    assert workload.preamble_tokens == len(words(workload.preamble))
    assert len(workload.sessions) == 1


def test_every_reading_is_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, "react", row("why")) == read(tmp_path, "react", row("why"))


def test_bad_rows_are_said_by_line_and_field(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3: field steps\.0\.action: Field required"):
        read(tmp_path, "react", row("why", {"thought": "x", "observation": "y"}))
    with pytest.raises(UserError, match="2 questions; the first 2 are examples"):
        read(tmp_path, "react")
