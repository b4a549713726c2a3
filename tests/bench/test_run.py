import io
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Task, TaskID

from prefillshare.bench import opened, watch
from prefillshare.bench import run as runner
from prefillshare.bench.drive import Play
from prefillshare.bench.host import Hosted, HostedWorker, HostRequest
from prefillshare.bench.hosting import HostFailed
from prefillshare.bench.matrix import Matrix, Run, WorkloadConfig, workload_of
from prefillshare.bench.systems import Machine
from prefillshare.errors import UserError
from prefillshare.identity import BaseIdentity
from prefillshare.workloads.conversation import Mode
from prefillshare.workloads.session import Workload
from prefillshare.workloads.tokens import Tokenise
from tests.bench.fake_server import FakeServer, hosted_by
from tests.workloads.tokenisers import words

MATRIX = Matrix(
    workloads=(WorkloadConfig(source="react", sessions=2, max_calls=3),),
    loads=("closed:2",),
    systems=("shared", "colocated"),
    models=(2,),
    repeats=2,
    machine=Machine(dtype="float32"),  # that of the fake servers
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has every system be a fake server; holds the systems that were started."""
    names: list[str] = []

    @asynccontextmanager
    async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
        names.append(request.system)
        async with hosted_by(FakeServer(), models=request.models, role="prefill") as system:
            yield system

    monkeypatch.setattr(runner, "hosted", hosted)
    monkeypatch.setattr(watch, "_IDLE_EVERY_S", 0.01)
    monkeypatch.setattr(opened, "workload_of", _without_thinking)
    monkeypatch.setattr(runner, "load_tokenise", lambda base: words)
    monkeypatch.setattr(runner, "compute_identity", lambda base: BaseIdentity(digest=f"of {base}", parts={}))
    return names


def _without_thinking(run: Run, tokenise: Tokenise, max_model_len: int, mode: Mode = "replay") -> Workload:
    """Drawn sessions think for seconds between their calls, and these runs would be played in real time."""
    drawn = workload_of(run, tokenise, max_model_len, mode)
    turns = ([replace(turn, think_s=0.0) for turn in session.turns] for session in drawn.sessions)
    sessions = (replace(session, turns=tuple(own)) for session, own in zip(drawn.sessions, turns, strict=True))
    return replace(drawn, sessions=tuple(sessions))


def run(output: Path, matrix: Matrix = MATRIX, only: tuple[str, ...] = (), base: str = "base") -> int:
    return runner.run(matrix, Path(base), output, Console(stderr=True, quiet=True), only)


def test_every_run_leaves_its_records_and_what_they_were_measured_with(started: list[str], tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert started == ["shared", "colocated"] * 2  # once for each repeat
    results = sorted((tmp_path / "runs").glob("*.json"))
    assert len(results) == 4
    rows = [json.loads(line) for line in results[0].with_suffix(".jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows].count("call") == 6
    assert [row["kind"] for row in rows].count("session") == 2
    facts = json.loads(results[0].read_text())
    assert (facts["system"], facts["models"], facts["load"]) == ("colocated", 2, "closed:2")
    assert facts["environment"]["dtype"] == "float32"
    assert facts["use"]["seconds"] > 0
    assert facts["roles"] == ["planner", "actor", "evaluator"]
    assert facts["cut_calls"] == facts["idle"]["requests"] == 0
    assert facts["workers"] == [{"name": "p", "role": "prefill", "core": 0, "kv_tokens": 5000}]


def test_systems_that_are_up_together_take_turns_with_every_load(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ports, up, played = [], set(), []
    plain, whole = runner.hosted, runner.one_run

    @asynccontextmanager
    async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
        async with plain(request, log) as system:
            up.add(request.system)
            ports.append((request.machine.first_port, request.machine.first_side_channel_port))
            yield system
        up.discard(request.system)

    async def one_run(each: Run, *rest: Any) -> None:
        assert up == {"shared", "colocated"}
        played.append(each.name)
        await whole(each, *rest)

    monkeypatch.setattr(runner, "hosted", hosted)
    idle = runner.until_idle

    async def until_idle(http: Any, workers: Sequence[HostedWorker]) -> Any:
        assert len(workers) == 2  # the other system's may still compute for a run that was cut off
        return await idle(http, workers)

    monkeypatch.setattr(runner, "one_run", one_run)
    monkeypatch.setattr(runner, "until_idle", until_idle)
    matrix = MATRIX.model_copy(update={"together": True, "loads": ("closed:1", "closed:2")})
    assert run(tmp_path, matrix) == 0
    assert started == ["shared", "colocated"]  # once for all repeats
    assert [(name.partition("-")[0], name[-10:]) for name in played] == [
        (system, f"{load}-{repeat}")
        for repeat in ("r0", "r1")
        for load in ("closed1", "closed2")
        for system in ("shared", "colocated")
    ]
    assert all(abs(one - other) >= 16 for one, other in zip(*ports, strict=True))  # each has as many workers, at most


def test_a_workload_may_have_a_limit_of_its_own(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    whole = runner.play

    async def play(http: Any, what: Play, tell: Callable[[Any], None]) -> float:
        limits.append(what.limit_s)
        return await whole(http, what, tell)

    monkeypatch.setattr(runner, "play", play)
    short = MATRIX.workloads[0].model_copy(update={"limit_s": 7.0, "seed": 1})
    run(tmp_path, MATRIX.model_copy(update={"workloads": (*MATRIX.workloads, short), "repeats": 1, "limit_s": 9.0}))
    assert limits == [9.0, 7.0] * 2
    written = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*.json")]
    assert sorted((facts["workload"]["seed"], facts["limit_s"]) for facts in written) == [
        (0, 9),
        (0, 9),
        (1, 7),
        (1, 7),
    ]


def test_without_a_terminal_it_says_how_far_it_is(started: list[str], tmp_path: Path) -> None:
    told = io.StringIO()
    assert runner.run(MATRIX, Path("base"), tmp_path, Console(file=told, width=200), ()) == 0
    done = [line.split(maxsplit=1)[1] for line in told.getvalue().splitlines() if "done: " in line]
    assert [line.partition(" (")[2].partition(",")[0] for line in done[:3]] == ["1 of 4", "2 of 4", "3 of 4"]
    assert done[3].endswith("(4 of 4)")
    assert all(re.search(r", about (\d+ h )?\d+ min left\)$", line) for line in done[:3])


@pytest.mark.parametrize(("elapsed_s", "left"), [(20, "1 min"), (900, "30 min"), (4500, "2 h 30 min")])
def test_time_left_goes_by_the_runs_that_are_done(elapsed_s: float, left: str) -> None:
    task = Task(TaskID(0), "", total=6, completed=2, _get_time=lambda: elapsed_s)
    task.start_time = 0.0
    assert runner._how_far(task) == f" (2 of 6, about {left} left)"


def test_sessions_are_opened_once_for_all_systems_and_of_a_file_for_all_repeats(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    plain = opened.workload_of

    def workload_of(each: Run, *rest: Any) -> Workload:
        asked.append((each.workload.source, each.repeat))
        return plain(each, *rest)

    monkeypatch.setattr(opened, "workload_of", workload_of)
    file = tmp_path / "own.jsonl"
    own = own_sessions(file, "so far", "so good").workloads
    matrix = MATRIX.model_copy(update={"workloads": (*MATRIX.workloads, *own), "repeats": 2})
    assert run(tmp_path / "results", matrix) == 0
    assert sorted(asked) == sorted([("react", 0), ("react", 1), (str(file), 0)])


def test_what_is_done_is_not_done_again(started: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    kept, lost = sorted((tmp_path / "runs").glob("shared*.json"))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    started.clear()
    assert run(tmp_path) == 0
    assert started == ["shared"]
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before
    started.clear()
    run(tmp_path)
    assert started == []


def test_part_of_a_matrix_can_be_run_and_the_rest_later(started: list[str], tmp_path: Path) -> None:
    assert run(tmp_path, only=("shared", "r1")) == 0
    names = sorted(file.stem for file in (tmp_path / "runs").glob("*.json"))
    assert names == [f"{system}-m2-react-2-3-s0-closed2-{repeat}" for system, repeat in _SOME]
    run(tmp_path)
    assert len(list((tmp_path / "runs").glob("*.json"))) == 4
    assert started == ["shared", "colocated", "colocated"]


_SOME = (("colocated", "r1"), ("shared", "r0"), ("shared", "r1"))


def test_a_part_that_is_none_is_refused_before_anything_starts(started: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--only closed:4 --only none: no run .* they are as shared-m2-react-2-3-s0-closed2-r0"
    ):
        run(tmp_path, only=("closed:4", "none"))
    assert started == []
    assert not (tmp_path / "matrix.json").exists()


def test_another_matrix_is_not_mixed_into_the_same_folder(started: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="holds the runs of another matrix"):
        run(tmp_path, MATRIX.model_copy(update={"repeats": 3}))


@pytest.mark.parametrize("wrong", [{"models": (8,)}, {"workloads": (WorkloadConfig(source="none.jsonl"),)}])
def test_a_matrix_that_cannot_run_does_not_claim_the_folder(
    started: list[str], tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"decode_kv_tokens|none\.jsonl"):
        run(tmp_path / "results", MATRIX.model_copy(update=wrong))
    assert not (tmp_path / "results").exists()
    assert run(tmp_path / "results") == 0


def test_a_matrix_from_before_there_was_a_field_goes_on(started: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "matrix.json"
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if value}))
    started.clear()
    assert run(tmp_path) == 0
    assert started == []
    file.write_text("{}")
    with pytest.raises(UserError, match="holds the runs of another matrix"):
        run(tmp_path)


def test_what_was_begun_on_another_kind_of_machine_is_not_gone_on_with(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, only=("r0",))
    started.clear()
    here = runner.kind_of_machine("float32")
    monkeypatch.setattr(runner, "kind_of_machine", lambda dtype: here | {"cores": 999, "dtype": "bfloat16"})
    with pytest.raises(UserError, match=r"made with cores \d+ and dtype float32, and here it is cores 999 and"):
        run(tmp_path)
    assert started == []
    assert run(tmp_path, only=("r0",)) == 0  # nothing of it is left to do
    monkeypatch.setattr(runner, "kind_of_machine", lambda dtype: here | {"not recorded then": 1})
    with pytest.raises(
        UserError, match=r"made with not recorded then not recorded, and here it is not recorded then 1"
    ):
        run(tmp_path)


def test_what_was_begun_with_another_base_is_not_gone_on_with(started: list[str], tmp_path: Path) -> None:
    run(tmp_path, only=("shared",))
    with pytest.raises(UserError, match="holds runs of another base"):
        run(tmp_path, base="other")
    assert started == ["shared"]
    assert run(tmp_path) == 0


def test_too_little_memory_for_the_models_is_said_before_anything_starts(started: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decode_kv_tokens=49,152 do not hold .* each of 8 workers, which shared has"):
        run(tmp_path, MATRIX.model_copy(update={"models": (4, 8)}))
    assert started == []


def own_sessions(file: Path, *texts: str) -> Matrix:
    """A matrix of a file's sessions, each with one call that puts out one of these texts."""
    rows = ({"session": f"s{place}", "turns": [{"role": "r", "output": text}]} for place, text in enumerate(texts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MATRIX.model_copy(update={"workloads": (WorkloadConfig(source=str(file), sessions=9),), "repeats": 1})


def test_a_file_that_has_changed_is_not_gone_on_with(started: list[str], tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    matrix, output = own_sessions(file, "so far", "so good"), tmp_path / "results"
    assert run(output, matrix, only=("shared",)) == 0
    own_sessions(file, "so far", "so bad")
    started.clear()
    with pytest.raises(
        UserError, match=r"holds shared-.*, which played other sessions than .*own.jsonl' has now; go on"
    ):
        run(output, matrix)
    assert started == []
    (result,) = (output / "runs").glob("*.json")
    facts = json.loads(result.read_text())
    # Records of before that was written do not say.
    result.write_text(json.dumps({name: value for name, value in facts.items() if name != "sessions_digest"}))
    assert run(output, matrix) == 0


def test_repeats_of_a_file_are_of_the_same_sessions(started: list[str], tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    matrix = own_sessions(file, "so far", "so good").model_copy(update={"repeats": 2})
    assert run(tmp_path / "results", matrix, only=("shared",)) == 0
    next((tmp_path / "results" / "runs").glob("*r1.json")).unlink()
    own_sessions(file, "so far", "so bad")
    with pytest.raises(UserError, match=r"holds shared-.*-r0, which played other sessions"):
        run(tmp_path / "results", matrix, only=("shared",))


def test_fewer_sessions_than_are_played_at_a_time_are_refused(started: list[str], tmp_path: Path) -> None:
    matrix = own_sessions(tmp_path / "own.jsonl", "so far", "so good")
    with pytest.raises(
        UserError, match=r"load 'closed:3': .*own.jsonl' has 2 sessions; give closed:2 or less, or more"
    ):
        run(tmp_path / "results", matrix.model_copy(update={"loads": ("closed:3",)}))
    assert started == []


def test_what_the_context_is_too_small_for_is_said_once_and_recorded(started: list[str], tmp_path: Path) -> None:
    matrix = own_sessions(tmp_path / "own.jsonl", "so far", "so " * 9000, "so good")
    told = io.StringIO()
    assert runner.run(matrix, Path("base"), tmp_path / "results", Console(file=told), ()) == 0
    assert told.getvalue().count("1 sessions whose first call does not fit are left out") == 1
    for result in (tmp_path / "results" / "runs").glob("*.json"):
        assert json.loads(result.read_text())["outgrown"] == {"left_out": 1, "shortened": 0}


def test_an_output_that_is_no_folder_is_refused_before_anything_starts(started: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"OUTPUT .*file is a file; give a folder"):
        run(tmp_path / "file")
    with pytest.raises(UserError, match=r"OUTPUT .*results: cannot write there: Not a directory; give another folder"):
        run(tmp_path / "file" / "results")
    assert started == []


def test_what_is_wrong_with_a_workload_is_said_before_anything_starts(started: list[str], tmp_path: Path) -> None:
    wrong = Matrix(workloads=(WORKLOAD := MATRIX.workloads[0], WORKLOAD.model_copy(update={"source": "none.jsonl"})))
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read it"):
        run(tmp_path, wrong)
    assert started == []


def test_a_trace_that_cannot_be_played_is_refused_before_anything_starts(started: list[str], tmp_path: Path) -> None:
    loads = ("closed:1", "trace")
    with pytest.raises(UserError, match="load 'trace': workload 'react' does not record when its sessions began"):
        run(tmp_path, MATRIX.model_copy(update={"loads": loads}))
    file = tmp_path / "own.jsonl"
    rows = ({"session": f"s{at}", "start_s": at, "turns": [{"role": "r", "output": "x"}]} for at in (100, 101, 140))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = Matrix.model_validate(
        MATRIX.model_dump() | {"workloads": [{"source": str(file)}], "loads": loads, "limit_s": 40, "repeats": 1}
    )
    with pytest.raises(
        UserError, match=r"load 'trace': the last of 3 sessions of .*own.jsonl' arrives after 40 s, and"
    ):
        run(tmp_path / "own", own)
    assert started == []
    assert run(tmp_path / "fast", own.model_copy(update={"loads": ("trace:100",)})) == 0
    facts = json.loads(next((tmp_path / "fast" / "runs").glob("shared*.json")).read_text())
    assert facts["seconds"] >= 0.4


def test_a_run_waits_until_the_one_before_is_off_the_workers(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    whole, idle = runner.play, watch.Idle(60.0, 2.0)

    async def until_idle(http: Any, workers: Any) -> watch.Idle:
        happened.append("waited")
        return idle

    async def play(http: Any, what: Play, tell: Callable[[Any], None]) -> float:
        happened.append("played")
        return await whole(http, what, tell)

    monkeypatch.setattr(runner, "until_idle", until_idle)
    monkeypatch.setattr(runner, "play", play)
    run(tmp_path, MATRIX.model_copy(update={"loads": ("closed:1", "closed:2"), "repeats": 1}), only=("shared",))
    assert happened == ["waited", "played"] * 2
    facts = json.loads(next((tmp_path / "runs").glob("*.json")).read_text())
    assert facts["idle"] == {"waited_s": 60.0, "requests": 2.0}


def test_calls_that_were_cut_off_are_counted(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
        async with hosted_by(FakeServer("hangs"), models=request.models, role="prefill") as system:
            yield system

    monkeypatch.setattr(runner, "hosted", hosted)
    run(tmp_path, MATRIX.model_copy(update={"limit_s": 0.3}), only=("shared-m2-react-2-3-s0-closed2-r0",))
    (file,) = (tmp_path / "runs").glob("*.json")
    kinds = [json.loads(line)["kind"] for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert kinds.count("cut") == json.loads(file.read_text())["cut_calls"] == 2


@pytest.mark.parametrize(("models", "differ"), [(2, False), (3, True)])
def test_runs_whose_roles_were_cast_otherwise_are_not_gone_on_with(
    started: list[str], tmp_path: Path, models: int, differ: bool
) -> None:
    """Three calls have no evaluator. Of three models the third was then the planner's too; of two it makes no odds."""
    matrix = MATRIX.model_copy(update={"models": (models,)})
    assert run(tmp_path, matrix, only=(f"shared-m{models}-react-2-3-s0-closed2-r0",)) == 0
    (file,) = (tmp_path / "runs").glob("shared*r0.json")
    facts = json.loads(file.read_text())
    started.clear()
    file.write_text(json.dumps({name: value for name, value in facts.items() if name != "roles"}))
    if differ:
        with pytest.raises(UserError, match="whose roles were planner, actor; now they are planner, actor, evaluator"):
            run(tmp_path, matrix)
        assert started == []
        file.write_text(json.dumps(facts))
    assert run(tmp_path, matrix) == 0


def test_what_was_asked_for_is_there_whole_or_not_at_all(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    whole = runner.write_whole
    monkeypatch.setattr(runner, "write_whole", lambda file, text: (written.append(file.name), whole(file, text)))
    run(tmp_path, only=("shared-m2-react-2-3-s0-closed2-r0",))
    assert written == ["matrix.json", "shared-m2-react-2-3-s0-closed2-r0.json"]


def test_a_system_that_does_not_start_ends_the_command(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
        raise HostFailed("no memory")
        yield

    monkeypatch.setattr(runner, "hosted", hosted)
    assert run(tmp_path) == 1
    assert not list((tmp_path).glob("runs/*.json"))
