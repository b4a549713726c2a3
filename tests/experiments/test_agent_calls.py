import json
from pathlib import Path

from experiments.agent_calls import AgentCall, generate_rows, load_rows, sessions_of


def tokenise(text: str) -> list[int]:
    return list(text.encode())


def row(question: str, reflections: list[str]) -> dict:
    step = {"thought": "so far", "action": "Search[x]", "observation": "x is y"}
    return {"question": question, "steps": [step, step], "reflections": reflections}


def test_a_session_is_all_trials_of_a_question_as_calls_of_its_roles() -> None:
    rows = [row("example 1", []), row("example 2", []), row("why", []), row("why", ["look again"])]
    (session,) = sessions_of(rows, tokenise)
    trial = ["planner", "actor", "planner", "actor"]
    assert [call.model for call in session] == [*trial, "reflector", *trial]
    assert [call.waits for call in session] == [False, False, True, False, True, False, False, True, False]
    assert session[0].output_tokens == len("so far")
    assert b"look again" in prompt(session[-1])


def test_roles_share_their_context_and_sessions_their_examples() -> None:
    rows = [row("example 1", []), row("example 2", []), row("why", []), row("how", [])]
    why, how = sessions_of(rows, tokenise)
    planner, actor = prompt(why[0]), prompt(why[1])
    assert planner.index(b"You are the planner") > planner.index(b"Question: why")
    assert actor.startswith(planner[: planner.index(b"You are the planner")].rstrip())
    assert prompt(how[0])[: why[0].common] == planner[: why[0].common]
    assert b"example 2" in planner[: why[0].common + 20]


def prompt(call: AgentCall) -> bytes:
    return bytes(call.token_ids.tolist())


def test_rows_are_read_and_made_up_in_one_form(tmp_path: Path) -> None:
    rows = generate_rows(sessions=5)
    assert rows == generate_rows(sessions=5) != generate_rows(sessions=5, seed=1)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert load_rows(file) == rows
    assert len(sessions_of(rows, tokenise)) == 3
