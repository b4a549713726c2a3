import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads.family import load_family
from prefillshare.workloads.generate import generate
from prefillshare.workloads.mooncake import read_trace, write_trace
from prefillshare.workloads.recorded import read_sessions, write_sessions
from prefillshare.workloads.session import Session, Turn, Workload, new_tokens, prompt_tokens
from tests.workloads.tokenisers import words


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def written(folder: Path, *requests: dict) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return file


def prompts(workload: Workload) -> list[list[str]]:
    """The words of every prompt, session by session."""
    found = []
    for session in workload.sessions:
        context: list[str] = []
        for turn in session.turns:
            if turn.restarts or not context:
                context = workload.preamble.split()
            context = [*context, *turn.observed.split()]
            found.append([*context, *turn.instructions.split()])
            context += turn.output.split()
    return found


def common(one: Sequence, two: Sequence) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def request(timestamp: float, tokens: int, blocks: list[int], output: int = 10, **fields: object) -> dict:
    return {"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": blocks, **fields}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return generate(load_family("reflexion"), 4, words)


def test_a_written_trace_has_the_workloads_lengths_and_times(workload: Workload, tmp_path: Path) -> None:
    session = workload.sessions[0]
    write_trace(
        tmp_path / "t.jsonl", Workload("w", workload.preamble, workload.preamble_tokens, (session,)), (5.0,), words
    )
    found = rows(tmp_path / "t.jsonl")
    assert [set(row) for row in found] == [{"timestamp", "input_length", "output_length", "hash_ids"}] * len(found)
    assert [row["input_length"] for row in found] == list(prompt_tokens(workload, session))
    assert [row["output_length"] for row in found] == [turn.output_tokens for turn in session.turns]
    assert found[0]["timestamp"] == 5000
    gap = found[1]["timestamp"] - found[0]["timestamp"]
    assert gap == pytest.approx(session.turns[0].output_tokens * 20 + session.turns[1].think_s * 1000, abs=1)


def test_blocks_are_shared_as_far_as_prompts_are(workload: Workload, tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", workload, (0.0, 0.0, 0.0, 0.0), words, block_size=64, session_ids=True)
    found = rows(tmp_path / "t.jsonl")
    common = workload.preamble_tokens // 64
    assert all(row["hash_ids"][:common] == list(range(common)) for row in found)
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 64) for row in found)
    for session in workload.sessions:
        prompts = [row for row in found if row["session_id"] == session.name]
        for before, after, turn in zip(prompts, prompts[1:], session.turns[1:], strict=False):
            shared = sum(a == b for a, b in zip(before["hash_ids"], after["hash_ids"], strict=False))
            context = before["input_length"] - session.turns[0].instructions_tokens - 30
            assert shared >= (common if turn.restarts else context // 64)


def test_the_same_words_behind_other_words_are_another_block(tmp_path: Path) -> None:
    turn = Turn("r", "on and on " * 8, 24, "so", 1, 0.0, "")
    write_trace(tmp_path / "t.jsonl", Workload("w", "", 0, (Session("s", (turn,)),)), (0.0,), words, block_size=6)
    (row,) = rows(tmp_path / "t.jsonl")
    assert row["hash_ids"] == list(range(len(row["hash_ids"])))
    assert len(row["hash_ids"]) > 3


@pytest.mark.parametrize("session_ids", [True, False])
def test_what_is_written_is_read(workload: Workload, tmp_path: Path, session_ids: bool) -> None:
    react = generate(load_family("react"), 6, words)
    # Instructions are not part of a trace's context, and prompts must go on from each other to be one session.
    bare = [
        Session(session.name, tuple(_without_instructions(turn) for turn in session.turns))
        for session in react.sessions
    ]
    source = Workload("react", react.preamble, react.preamble_tokens, tuple(bare))
    starts = tuple(100.0 * number for number in range(6))
    write_trace(tmp_path / "t.jsonl", source, starts, words, block_size=16, session_ids=session_ids)
    trace = read_trace(tmp_path / "t.jsonl", words, block_size=16)
    assert trace.starts() == starts
    for before, after in zip(source.sessions, trace.sessions, strict=True):
        assert list(prompt_tokens(trace, after)) == list(prompt_tokens(source, before))
        assert [turn.output_tokens for turn in after.turns] == [turn.output_tokens for turn in before.turns]
        for left, right in zip(before.turns[1:], after.turns[1:], strict=True):
            assert right.think_s == pytest.approx(left.think_s, abs=0.002)


@pytest.mark.parametrize("session_ids", [True, False])
@pytest.mark.parametrize("block_size", [64, 512])
@pytest.mark.parametrize("family", ["react", "reflexion"])
def test_sessions_survive_with_the_instructions_of_their_roles(
    family: str, block_size: int, session_ids: bool, tmp_path: Path
) -> None:
    source = generate(load_family(family), 8, words)
    if not session_ids:  # then a trial that begins again is a session
        source = replace(source, sessions=tuple(_first_trial(session) for session in source.sessions))
    file = tmp_path / "t.jsonl"
    write_trace(file, source, [4.0 * n for n in range(8)], words, block_size=block_size, session_ids=session_ids)
    read = read_trace(file, words, block_size=block_size)
    assert len(read.sessions) == 8
    for before, after in zip(source.sessions, read.sessions, strict=True):
        assert [turn.restarts for turn in after.turns] == [turn.restarts for turn in before.turns]
        assert [turn.output_tokens for turn in after.turns] == [turn.output_tokens for turn in before.turns]
        assert list(prompt_tokens(read, after)) == list(prompt_tokens(source, before))
        # A session's first prompt is new but for the preamble, of which the last block is not whole.
        for new, was in list(zip(new_tokens(after), new_tokens(before), strict=True))[1:]:
            assert abs(new - was) <= block_size
    if family == "reflexion" and session_ids:
        assert any(turn.restarts for session in read.sessions for turn in session.turns)


@pytest.mark.parametrize("session_ids", [True, False])
def test_texts_share_what_the_blocks_of_a_written_trace_do(session_ids: bool, tmp_path: Path) -> None:
    source = generate(load_family("reflexion"), 3, words)
    file = tmp_path / "t.jsonl"
    # One session after the other, so that prompts are read in the order of rows.
    write_trace(file, source, [9e4 * n for n in range(3)], words, block_size=64, session_ids=session_ids)
    blocks = [row["hash_ids"] for row in rows(file)]
    texts = prompts(read_trace(file, words, block_size=64))
    assert len(texts) == len(blocks)
    for first in range(0, len(texts), 5):
        for second in range(first + 1, len(texts)):
            shared = common(blocks[first], blocks[second])
            assert 64 * shared <= common(texts[first], texts[second]) < 64 * (shared + 1)


def _first_trial(session: Session) -> Session:
    again = (number for number, turn in enumerate(session.turns) if turn.restarts)
    return replace(session, turns=session.turns[: next(again, None)])


def _without_instructions(turn: Turn) -> Turn:
    return replace(turn, instructions="", instructions_tokens=0)


def test_prompts_share_text_where_they_share_blocks(tmp_path: Path) -> None:
    file = written(tmp_path, request(0, 40, [0, 1, 2]), request(5, 45, [0, 1, 3]), request(9, 20, [7, 8]))
    first, second, third = (session.turns[0] for session in read_trace(file, words, block_size=16).sessions)
    assert [len(words(turn.observed)) for turn in (first, second, third)] == [40, 45, 20]
    assert first.observed.split()[:32] == second.observed.split()[:32]
    assert first.observed.split()[32:] != second.observed.split()[32:40]
    assert third.observed.split()[0] != first.observed.split()[0]


def test_a_request_goes_on_where_another_ended(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        request(0, 40, [0, 1, 2]),
        request(100, 40, [5, 6, 7]),
        request(3000, 60, [0, 1, 8, 9]),
        request(4000, 48, [0, 1, 10]),  # too short to hold the first answer and more
        request(9000, 90, [5, 6, 11, 12, 13, 14]),
    )
    trace = read_trace(file, words, block_size=16)
    assert [len(session.turns) for session in trace.sessions] == [2, 2, 1]
    assert trace.starts() == (0.0, 0.1, 4.0)
    _, second = trace.sessions[0].turns
    assert (second.observed_tokens, second.think_s) == (10, 2.8)


def test_what_an_answer_became_is_shared_too(tmp_path: Path) -> None:
    # The second prompt holds the first answer; a third one shares five blocks with it and is no continuation.
    file = written(
        tmp_path,
        request(0, 1024, [1, 2], output=600),
        request(20_000, 3072, [1, 2, 3, 4, 5, 6]),
        request(60_000, 3584, [1, 2, 3, 4, 5, 7, 8]),
        request(99_000, 3072, [1, 2, 3, 4, 5, 6]),
    )
    read = read_trace(file, words)
    assert [len(session.turns) for session in read.sessions] == [2, 1, 1]
    first, second, fork, same = prompts(read)
    assert (common(first, second), common(second, fork), common(second, same)) == (1024, 5 * 512, 3072)
    assert len(read.sessions[0].turns[0].output.split()) == 600
    assert read.sessions[0].turns[1].observed_tokens == 3072 - 1024 - 600


def test_what_all_sessions_begin_with_is_the_preamble(tmp_path: Path) -> None:
    file = written(tmp_path, *(request(9000 * n, 70, [0, 1, 2, 10 + n, 20 + n]) for n in range(3)))
    read = read_trace(file, words, block_size=16)
    assert read.preamble_tokens == 48 == len(read.preamble.split())
    assert [session.turns[0].observed_tokens for session in read.sessions] == [22] * 3
    alone = read_trace(written(tmp_path, request(0, 70, [0, 1, 2, 3, 4])), words, block_size=16)
    assert (alone.preamble, alone.preamble_tokens) == ("", 0)


def test_texts_go_through_the_projects_own_form(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.jsonl", generate(load_family("react"), 3, words), (0.0, 50.0, 99.0), words)
    read = read_trace(tmp_path / "t.jsonl", words)
    write_sessions(tmp_path / "s.jsonl", read)
    assert replace(read_sessions(tmp_path / "s.jsonl", words), name=read.name) == read


def test_a_named_session_that_shares_nothing_restarts(tmp_path: Path) -> None:
    file = written(
        tmp_path, request(0, 1024, [1, 2], session_id="a"), request(9000, 2048, [11, 12, 13, 14], session_id="a")
    )
    read = read_trace(file, words)
    _, again = read.sessions[0].turns
    assert (again.restarts, again.observed_tokens) == (True, 2048)
    assert common(*prompts(read)) < 5


def test_a_named_session_may_start_again(tmp_path: Path) -> None:
    file = written(tmp_path, request(0, 40, [0, 1, 2], session_id="a"), request(9, 20, [3, 4], session_id="a"))
    _, again = read_trace(file, words, block_size=16).sessions[0].turns
    assert (again.restarts, again.observed_tokens) == (True, 20)


def test_other_names_of_the_lengths_are_known(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_tokens": 20, "output_tokens": 3, "hash_ids": [1, 2], "extra": True}
    (session,) = read_trace(written(tmp_path, row), words, block_size=16).sessions
    assert session.turns[0].output_tokens == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (request(0, 40, [0, 1]), "line 1, field hash_ids: 2 blocks do not make 40 tokens, with 16"),
        (request(-1, 10, [0]), "line 1: field timestamp"),
        (request(0, 10, [0], output=0), "line 1: field output_length"),
    ],
)
def test_bad_rows_are_said_by_line_and_field(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_trace(written(tmp_path, row), words, block_size=16)


def test_a_trace_has_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no requests"):
        read_trace(written(tmp_path), words)


def test_requests_may_stand_in_any_order(tmp_path: Path) -> None:
    file = written(tmp_path, request(500, 20, [3, 4]), request(0, 20, [1, 2]))
    starts = read_trace(file, words, block_size=16).starts()
    assert all(before <= after for before, after in pairwise(starts))
    assert starts[0] == 0
