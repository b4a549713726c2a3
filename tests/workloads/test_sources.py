import json
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads import mooncake
from prefillshare.workloads.session import Outgrown, Workload, prompt_tokens
from prefillshare.workloads.sources import in_words, open_workload
from tests.workloads.tokenisers import characters, words

STEP = {"thought": "so far", "action": "Search[x]", "observation": "x is y"}


def written(file: Path, *rows: dict) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_family_is_drawn() -> None:
    workload = open_workload("react", words, sessions=3, seed=5)
    assert [session.name for session in workload.sessions] == ["react-5-0", "react-5-1", "react-5-2"]
    with pytest.raises(UserError, match="say how many sessions"):
        open_workload("react", words)


def test_files_are_read_as_what_they_are_said_to_be(tmp_path: Path) -> None:
    own = written(tmp_path / "own.jsonl", {"session": "a", "turns": [{"role": "r", "output": "x"}]})
    assert open_workload(str(own), words).roles() == ("r",)
    trials = written(tmp_path / "trials.jsonl", *({"question": q, "steps": [STEP]} for q in "abccdd"))
    assert len(open_workload(f"react:{trials}", words).sessions) == 4
    assert len(open_workload(f"reflexion:{trials}", words).sessions) == 2
    assert len(open_workload(f"react:{trials}", words, sessions=1).sessions) == 1
    trace = written(tmp_path / "trace.jsonl", {"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [0]})
    assert open_workload(f"mooncake:{trace}", words).roles() == ("model",)


def test_sessions_end_where_they_would_outgrow_the_context() -> None:
    whole, cut = (open_workload("tool_heavy", words, sessions=10, context_limit=limit) for limit in (None, 3000))
    assert max(max(prompt_tokens(cut, session)) for session in cut.sessions) <= 3000
    assert all(
        short.turns == long.turns[: len(short.turns)] for short, long in zip(cut.sessions, whole.sessions, strict=True)
    )
    with pytest.raises(UserError, match="no session fits into 100 tokens"):
        open_workload("tool_heavy", words, sessions=10, context_limit=100)


@pytest.mark.parametrize("source", ["sql", "bfcl:live", "sessions.csv", "mooncake"])
def test_an_unknown_source_is_refused_with_those_there_are(source: str) -> None:
    with pytest.raises(UserError, match=f"workload '{source}': give react, reflexion, tool_heavy, a .jsonl file"):
        open_workload(source, words)


def test_a_tokenizer_for_which_no_text_can_be_made_up_is_refused(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [0]}
    lengths = {"session": "a", "turns": [{"role": "r", "output_tokens": 3}]}
    trace, own = written(tmp_path / "trace.jsonl", row), written(tmp_path / "own.jsonl", lengths)
    for source in ("react", f"mooncake:{trace}", str(own)):
        with pytest.raises(UserError, match=r"^workload '.*': only 0 of .* ordinary words .* give a base with another"):
            open_workload(source, characters, sessions=1)


def test_roles_are_those_of_the_source_whatever_is_drawn(tmp_path: Path) -> None:
    drawn = open_workload("reflexion", words, sessions=2, context_limit=1700)
    called = {turn.role for session in drawn.sessions for turn in session.turns}
    assert drawn.roles() == ("planner", "actor", "evaluator", "reflector")
    assert "reflector" not in called
    rows = [{"session": name, "turns": [{"role": name, "output": "x"}]} for name in "abc"]
    own = written(tmp_path / "own.jsonl", *rows)
    assert open_workload(str(own), words, sessions=1).roles() == ("a", "b", "c")
    common = {"instructions": {"c": "You are c.", "d": "You are d."}}
    assert open_workload(str(written(own, common, *rows)), words, sessions=1).roles() == ("c", "d", "a", "b")
    trials = written(tmp_path / "trials.jsonl", *({"question": q, "steps": [STEP]} for q in "abcc"))
    assert open_workload(f"react:{trials}", words).roles() == ("planner", "actor", "evaluator")
    assert open_workload(f"reflexion:{trials}", words).roles() == ("planner", "actor", "evaluator", "reflector")


def test_sessions_that_began_soon_are_taken_too(tmp_path: Path) -> None:
    starts = (40.0, 43.0, 45.0, 60.0)
    rows = ({"session": f"s{at}", "start_s": at, "turns": [{"role": "r", "output": "x"}]} for at in starts)
    file = str(written(tmp_path / "own.jsonl", *rows))

    def begun(sessions: int, within_s: float | None) -> tuple[float, ...] | None:
        return open_workload(file, words, sessions=sessions, begun_within_s=within_s).starts()

    assert begun(1, 5.0) == (0.0, 3.0, 5.0)
    assert begun(4, 5.0) == (0.0, 3.0, 5.0, 20.0)
    assert begun(2, None) == (0.0, 3.0)
    drawn = open_workload("react", words, sessions=2, begun_within_s=1e9)
    assert (len(drawn.sessions), drawn.starts()) == (2, None)


def test_sessions_that_begin_together_are_not_more_than_asked_for(tmp_path: Path) -> None:
    rows = ({"session": name, "start_s": 0.0, "turns": [{"role": "r", "output": "x"}]} for name in "abc")
    file = str(written(tmp_path / "own.jsonl", *rows))
    assert len(open_workload(file, words, sessions=2).sessions) == 2
    assert len(open_workload(file, words, sessions=2, begun_within_s=0.0).sessions) == 3


def long(name: str, *outputs: int) -> dict:
    return {"session": name, "turns": [{"role": "r", "output": "so " * number} for number in outputs]}


def test_what_a_context_is_too_small_for_is_counted(tmp_path: Path) -> None:
    rows = [long("a", 50), long("b", 5, 5, 30), long("c", 5), long("d", 50), long("e", 5, 50)]
    file = str(written(tmp_path / "own.jsonl", *rows))

    def opened(**limits: int | None) -> Workload:
        return open_workload(file, words, **limits)

    whole = opened(context_limit=20)
    assert [(session.name, len(session.turns)) for session in whole.sessions] == [("b", 2), ("c", 1), ("e", 1)]
    assert whole.outgrown == Outgrown(left_out=2, shortened=2)
    assert opened(context_limit=20, sessions=2).outgrown == Outgrown(left_out=1, shortened=1)  # d and e are not wanted
    assert opened(context_limit=20, sessions=9).outgrown == Outgrown(left_out=2, shortened=2)
    assert opened(context_limit=20, max_calls=1).outgrown == Outgrown(left_out=2)
    assert opened(context_limit=100).outgrown == opened().outgrown == Outgrown()
    said = in_words(file, whole.outgrown, 2000)
    assert said is not None
    assert said.startswith(f"workload '{file}', in 2,000 tokens of context: ")
    assert said.endswith("context: 2 sessions whose first call does not fit are left out, 2 end early")
    assert in_words(file, Outgrown(), 20) is None
    assert in_words("tool_heavy", Outgrown(shortened=3), 20) is None  # drawn to the end of the context


def test_outputs_that_may_become_longer_take_more_of_the_context(tmp_path: Path) -> None:
    file = str(written(tmp_path / "own.jsonl", long("a", 5, 5, 5)))
    for stretch, calls in ((1, 3), (2, 1)):
        (session,) = open_workload(file, words, context_limit=18, stretch=stretch).sessions
        assert len(session.turns) == calls


@pytest.mark.parametrize(
    ("limits", "built"),
    [
        ({"sessions": 2}, 3),  # one more is looked at, since it may have begun soon enough
        ({"sessions": 2, "context_limit": 700}, 4),  # the first does not fit
        ({"sessions": 1, "begun_within_s": 3.0}, 5),
        ({}, 6),
    ],
)
def test_of_a_trace_only_the_sessions_that_are_wanted_are_made_up(
    limits: dict[str, float], built: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trace.jsonl"
    # The first three have both blocks in common, all six the first.
    rows = (
        {"timestamp": 1000 * n, "input_length": 900 if n == 0 else 600, "output_length": 5, "session_id": n}
        | {"hash_ids": [0, max(3, n)]}
        for n in range(6)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = mooncake.read_trace(file, words)
    made: list[int] = []
    turns = mooncake._Builder.turns
    monkeypatch.setattr(mooncake._Builder, "turns", lambda *given: made.append(1) or turns(*given))
    opened = open_workload(f"mooncake:{file}", words, **limits)
    assert len(made) == built
    assert (opened.preamble, opened.preamble_tokens) == (whole.preamble, 512)  # what all begin with
    first = 1 if "context_limit" in limits else 0
    wanted = 6 if not limits else 4 if "begun_within_s" in limits else limits["sessions"]
    assert opened.sessions == whole.sessions[first : first + wanted]
    assert opened.outgrown.left_out == first
