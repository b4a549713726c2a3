import json
from pathlib import Path

import pytest

from prefillshare.bench.matrix import FULL, SHORT, Matrix, Run, WorkloadConfig, load_matrix, runs, workload_of
from prefillshare.errors import UserError
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson, Trace
from tests.workloads.tokenisers import words

WORKLOAD = WorkloadConfig(source="react", sessions=3)


def test_every_cell_is_run_as_often_as_asked_and_a_repeat_ends_before_the_next() -> None:
    matrix = Matrix(workloads=(WORKLOAD,), loads=("closed:1", "closed:2"), models=(2, 4), repeats=3)
    found = list(runs(matrix))
    assert len(found) == len({run.name for run in found}) == 3 * 2 * 2 * 3
    assert [run.repeat for run in found] == [repeat for repeat in range(3) for _ in range(12)]
    starts = [(run.repeat, run.models, run.system) for run in found]
    assert len(dict.fromkeys(starts)) == sum(a != b for a, b in zip([None, *starts], starts, strict=False)) == 18


def test_a_closed_loop_plays_its_rounds() -> None:
    matrix = Matrix(
        workloads=(WORKLOAD,), loads=("closed:1", "closed:8", "poisson:0.1"), systems=("shared",), repeats=1, rounds=2
    )
    assert [(run.load, run.workload.sessions) for run in runs(matrix)] == [
        ("closed:1", 3),
        ("closed:8", 16),
        ("poisson:0.1", 3),
    ]
    once = matrix.model_copy(update={"rounds": None})
    assert [run.workload.sessions for run in runs(once)] == [3, 8, 3]  # as many as its load says


def test_an_open_loop_plays_what_arrives_in_its_minutes() -> None:
    loads = ("closed:8", "poisson:0.005", "poisson:0.1", "poisson:0.123")
    matrix = Matrix(workloads=(WORKLOAD,), loads=loads, systems=("shared",), repeats=1, minutes=5)
    assert [run.workload.sessions for run in runs(matrix)] == [8, 3, 30, 37]


def test_a_workload_may_have_loads_of_its_own() -> None:
    own = WORKLOAD.model_copy(update={"source": "reflexion", "loads": ("closed:2",)})
    matrix = Matrix(workloads=(WORKLOAD, own), loads=("closed:1", "closed:3"), systems=("shared",), repeats=1)
    found = [(run.workload.source, run.load) for run in runs(matrix)]
    assert found == [("react", "closed:1"), ("react", "closed:3"), ("reflexion", "closed:2")]
    assert {run.workload.loads for run in runs(matrix)} == {None}  # a run has one load


def test_names_tell_runs_apart_and_are_names_of_files() -> None:
    def name(workload: WorkloadConfig, load: str = "poisson:0.5") -> str:
        return Run("shared", 4, workload, load, 0).name

    assert name(WORKLOAD) == "shared-m4-react-3-s0-poisson0.5-r0"
    others = [
        WORKLOAD.model_copy(update=change)
        for change in (
            {"sessions": 4},
            {"max_calls": 4},
            {"seed": 1},
            {"source": "a/b"},
            {"source": "c/b"},
            {"source": "react:c/b"},
        )
    ]
    names = {name(other) for other in (WORKLOAD, *others)}
    assert len(names) == 7
    assert not any("/" in each for each in names)


def test_systems_are_given_the_same_sessions_and_repeats_others() -> None:
    def of(system: str, repeat: int, config: WorkloadConfig = WORKLOAD):
        run = Run(system, 4, config, "closed:1", repeat)
        return run.salt, workload_of(run, words, 8192)

    assert of("shared", 0) == of("colocated", 0)
    assert of("shared", 0)[0] != of("shared", 1)[0]
    assert of("shared", 0)[1].sessions[0] != of("shared", 1)[1].sessions[0]
    cut_salt, cut = of("shared", 0, WORKLOAD.model_copy(update={"max_calls": 4}))
    assert cut_salt != of("shared", 0)[0]  # the system still has the prompts of the other in its caches
    assert [len(session.turns) for session in cut.sessions] == [4, 4, 4]
    assert cut.sessions[0].turns == of("shared", 0)[1].sessions[0].turns[:4]


def test_a_run_cannot_be_asked_for_twice() -> None:
    with pytest.raises(ValueError, match="shared-m4-react-4-s0-closed4-r0 would be run twice"):
        Matrix(workloads=(WORKLOAD, WORKLOAD))
    with pytest.raises(ValueError, match="shared-m4-react-4-s0-closed4-r0 would be run twice"):
        Matrix(workloads=(WORKLOAD,), loads=("closed:4", "closed:4"))


def test_loads_are_of_the_repeat() -> None:
    def arrivals(load: str) -> Arrivals:
        run = Run("shared", 4, WORKLOAD, load, 1)
        return run.arrivals(workload_of(run, words, 8192))

    assert arrivals("closed:3") == Closed(3)
    assert arrivals("poisson:0.5") == Poisson(0.5, seed=1)


def recorded(folder: Path) -> WorkloadConfig:
    """Sessions that began at 5, 6, ... 24 s."""
    turns = [{"role": "r", "output": "x y"}] * 3
    rows = ({"session": f"s{number}", "start_s": 5.0 + number, "turns": turns} for number in range(20))
    file = folder / "recorded.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return WorkloadConfig(source=str(file), sessions=3, max_calls=2)


def test_recorded_sessions_arrive_as_they_did(tmp_path: Path) -> None:
    run = Run("shared", 4, recorded(tmp_path), "trace:2", 1)
    workload = workload_of(run, words, 8192)
    assert [len(session.turns) for session in workload.sessions] == [2, 2, 2]
    assert run.arrivals(workload) == Trace(2.0, (0.0, 1.0, 2.0))
    assert run.name.endswith("-trace2-r1")


def test_a_trace_plays_what_was_recorded_in_its_minutes(tmp_path: Path) -> None:
    loads = ("trace", "trace:2", "closed:1")
    matrix = Matrix(workloads=(recorded(tmp_path),), loads=loads, systems=("shared",), repeats=1, minutes=0.1)
    found = [len(workload_of(run, words, 8192).sessions) for run in runs(matrix)]
    assert found == [7, 13, 3]  # that began within 6 s, and 12
    # What is recorded of a run says which sessions it had.
    assert [run.workload.minutes for run in runs(matrix)] == [0.1, 0.1, None]
    few = matrix.model_copy(update={"workloads": (recorded(tmp_path).model_copy(update={"minutes": 0.01}),)})
    assert [len(workload_of(run, words, 8192).sessions) for run in runs(few)] == [3, 3, 3]


def test_a_trace_of_sessions_without_times_is_refused() -> None:
    run = Run("shared", 4, WORKLOAD.model_copy(update={"minutes": 1.0}), "trace", 0)
    with pytest.raises(
        UserError, match=r"load 'trace': workload 'react' does not record when .*give it `loads` of its"
    ):
        run.arrivals(workload_of(run, words, 8192))


def test_a_matrix_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "matrix.yaml"
    file.write_text("workloads: [{source: react}]\nloads: ['closed:2']\nmachine: {decode_cores: [2, 3]}\n")
    assert load_matrix(file).machine.decode_cores == (2, 3)
    for text, message in (
        ("workloads: []", r"workloads: .*at least 1"),
        ("workloads: [{source: react}]\nmodels: [9]", r"models\.0: .*less than or equal to 8"),
        ("workloads: [{source: react}]\nloads: [four]", "load 'four'"),
        ("workloads: [{source: react, loads: [five]}]", "load 'five'"),
        ("workloads: [{source: react}]\nminutes: 0", "minutes: .*greater than 0"),
        ("workloads: [{source: react}]\nminutes: 10", "minutes=10 of arrivals do not end before limit_s=600"),
        ("workloads: [{source: react, limit_s: 60}]\nminutes: 2", "minutes=2 of arrivals do not end .*limit_s=60;"),
        ("workloads: [{source: react, minutes: 10}]", "minutes=10 of arrivals do not end before limit_s=600"),
        ("workloads: [{source: react}]\nloads: ['trace:fast']", "load 'trace:fast'"),
        ("workloads: [{source: react}]\nsystems: [ours]", r"systems\.0"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_matrix(file)


def test_the_short_matrix_ends_in_time() -> None:
    starting_s = 150 * len(SHORT.systems)
    assert starting_s + len(list(runs(SHORT))) * SHORT.limit_s < 15 * 60
    assert {config.source for config in FULL.workloads} == {"react", "reflexion", "tool_heavy"}


def test_live_sessions_have_room_for_outputs_twice_as_long(tmp_path: Path) -> None:
    turns = [{"role": "r", "output": "so " * 10}] * 4
    (tmp_path / "own.jsonl").write_text(json.dumps({"session": "a", "turns": turns}) + "\n")
    run = Run("shared", 4, WorkloadConfig(source=str(tmp_path / "own.jsonl"), sessions=1), "closed:1", 0)
    calls = [len(workload_of(run, words, 60, mode).sessions[0].turns) for mode in ("replay", "live")]
    assert calls == [4, 2]


def test_what_differs_is_never_shown_under_one_name() -> None:
    def title(source: str, **fields: int) -> str:
        return WorkloadConfig(source=source, **fields).title

    assert title("react") == title("a/react.jsonl") == "react"
    assert title("react", max_calls=3) == "react, 3 calls"
    assert title("react", seed=2) == "react, seed 2"
    assert (title("react:a/hotpot.jsonl"), title("reflexion:a/hotpot.jsonl")) == ("react:hotpot", "reflexion:hotpot")
    assert (title("mooncake:t.jsonl"), title("bfcl:base")) == ("mooncake:t", "bfcl:base")
    files = tuple(WorkloadConfig(source=f"mooncake:{folder}/t.jsonl") for folder in "ab")
    with pytest.raises(ValueError, match=r"'mooncake:a/t.jsonl' and 'mooncake:b/t.jsonl' would both be shown as 'moon"):
        Matrix(workloads=files)
    more = WORKLOAD.model_copy(update={"sessions": 30})
    with pytest.raises(ValueError, match="'react' is given twice with load 'closed:4', with other `sessions` alone"):
        Matrix(workloads=(WORKLOAD, more))
    loads = WORKLOAD.model_copy(update={"sessions": 30, "loads": ("closed:9",)})
    assert len(Matrix(workloads=(WORKLOAD, loads), loads=("closed:4",)).workloads) == 2
