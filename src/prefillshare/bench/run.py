"""Runs a matrix and writes what was measured; the same command goes on where it was stopped.

OUTPUT/matrix.json           what was asked for
OUTPUT/runs/NAME.jsonl       every call and session as it ended
OUTPUT/runs/NAME.json        written last, so a run without it is done again: what the workers did, the environment
OUTPUT/systems/, logs/       modules and logs of the systems
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from prefillshare.bench.client import open_client
from prefillshare.bench.drive import CutRecord, Play, Record, as_row, play
from prefillshare.bench.environment import environment, kind_of_machine
from prefillshare.bench.host import Hosted, HostedWorker, HostRequest
from prefillshare.bench.hosting import hosted, to_the_end
from prefillshare.bench.matrix import Matrix, Run, context_for_texts, runs
from prefillshare.bench.opened import Opened, is_drawn, opener
from prefillshare.bench.systems import SYSTEMS, SystemName, check_room, model_names
from prefillshare.bench.watch import until_idle, watching
from prefillshare.errors import UserError
from prefillshare.files import write_whole
from prefillshare.hardware import resolve_dtype
from prefillshare.identity import compute_identity
from prefillshare.workloads.arrivals import Closed, Trace, parse_arrivals
from prefillshare.workloads.models import cast
from prefillshare.workloads.session import Workload
from prefillshare.workloads.sources import in_words
from prefillshare.workloads.tokens import load_tokenise

MATRIX = "matrix.json"

_AUTOGROUPS = (
    "Linux divides cores among sessions here, so engines on one core can keep each other waiting for seconds; "
    "`sudo sysctl kernel.sched_autogroup_enabled=0` has it divide them evenly"
)


def run(matrix: Matrix, base: Path, output: Path, console: Console, only: Sequence[str] = ()) -> int:
    """Runs what is missing; returns the exit code, as `to_the_end`.

    Args:
        only: the runs to do now: those with one of these in their names. Without it, all.

    Raises:
        UserError: the base is no checkpoint with a tokenizer, a workload cannot be opened, a system has too little KV
            memory for its models, sessions do not say when they arrive or do so after the limit, or are fewer than a
            closed loop has at a time, `output` is no folder that can be written to, or holds another matrix or runs of
            another base, on another kind of machine, of other sessions or with roles cast otherwise, or no run has a
            name as in `only`.
    """
    return asyncio.run(_run(matrix, base, output, console, only))


async def _run(matrix: Matrix, base: Path, output: Path, console: Console, only: Sequence[str]) -> int:
    tokenise = load_tokenise(base)
    wanted = [each for each in runs(matrix) if not only or any(part in each.name for part in only)]
    if not wanted:
        example = next(runs(matrix)).name
        given = " ".join(f"--only {part}" for part in only)
        raise UserError(f"{given}: no run of this matrix has that in its name; they are as {example}")
    _check_free(output, matrix)
    missing = [each for each in wanted if not _result(output, each).exists()]
    identity = ""
    if missing:
        identity, kind = compute_identity(base).digest, kind_of_machine(resolve_dtype(matrix.machine.dtype))
        _check_same(output, identity, kind)
        if kind["autogroups"]:
            console.print(_AUTOGROUPS, style="yellow", markup=False, highlight=False)
    said, opened = set[str](), opener(matrix, tokenise)
    for each in missing:
        check_room(each.system, each.models, matrix.machine)
        workload, digest = opened(each)  # says what is wrong with it
        _check_ends(each, workload, matrix.limit_of(each.workload))
        _check_enough(each, workload)
        _check_played_before(output, each, workload, digest, matrix.repeats)
        context = context_for_texts(matrix.machine.max_model_len)
        if (text := in_words(each.workload.source, workload.outgrown, context)) and text not in said:
            said.add(text)
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _claim(output, matrix)  # not by one that cannot run: mended, it would be another
    console.print(f"{len(missing)} runs to do; what is done is in {output / 'runs'}", markup=False, soft_wrap=True)

    async def play_all() -> None:
        with _progress(console) as progress:
            task = progress.add_task("", total=len(missing))
            await _all(missing, matrix, base, identity, output, opened, partial(_show, progress, task))

    return await to_the_end(
        play_all(), console, stopped="stopped; the same command goes on with the run that was under way"
    )


async def _all(
    missing: Iterable[Run],
    matrix: Matrix,
    base: Path,
    identity: str,
    output: Path,
    opened: Callable[[Run], Opened],
    show: Callable[[str, int], None],
) -> None:
    for (models, _), group in groupby(missing, key=lambda each: (each.models, matrix.together or each.system)):
        todo = list(group)
        async with AsyncExitStack() as stack:
            started: dict[SystemName, Hosted] = {}
            for system in dict.fromkeys(each.system for each in todo):
                show(f"starting {system} with {models} models", 0)
                folder, log = output / "systems" / f"{system}-m{models}", output / "logs" / f"{system}-m{models}.log"
                machine = matrix.machine.on_other_ports(len(started))
                request = HostRequest(system=system, models=models, base=base, folder=folder, machine=machine)
                started[system] = await stack.enter_async_context(hosted(request, log))
            workers = [worker for system in started.values() for worker in system.workers]
            for each in todo:
                show(each.name, 0)
                await one_run(each, matrix, identity, started[each.system], output, opened(each), workers)
                show(each.name, 1)


async def one_run(
    each: Run,
    matrix: Matrix,
    identity: str,
    system: Hosted,
    output: Path,
    opened: Opened,
    workers: Sequence[HostedWorker],
) -> None:
    """Plays one run on a started system, whose base has this identity, and writes its two files. `workers` are of all
    systems that are up: none of them may still compute for a run that was cut off."""
    workload = opened.workload
    result = _result(output, each)
    result.parent.mkdir(parents=True, exist_ok=True)
    what = Play(
        workload=workload,
        arrivals=each.arrivals(workload),
        models=model_names(each.models),
        endpoints=system.endpoints,
        mode=matrix.mode,
        limit_s=matrix.limit_of(each.workload),
        salt=each.salt,
    )
    cut_calls = 0
    async with open_client(system.api_key) as http:
        idle = await until_idle(http, workers)
        found = environment(system)
        with result.with_suffix(".jsonl").open("w") as records:

            def tell(record: Record) -> None:
                nonlocal cut_calls
                cut_calls += isinstance(record, CutRecord)
                records.write(json.dumps(as_row(record)) + "\n")
                records.flush()

            async with watching(http, system) as use:
                seconds = await play(http, what, tell)
    facts = {
        "run": each.name,
        "system": each.system,
        "models": each.models,
        "workload": each.workload.model_dump(),
        "roles": workload.roles(),
        "sessions_digest": opened.digest,
        "outgrown": asdict(workload.outgrown),
        "load": each.load,
        "repeat": each.repeat,
        "mode": matrix.mode,
        "limit_s": what.limit_s,
        "seconds": round(seconds, 3),
        "cut_calls": cut_calls,
        "idle": asdict(idle),
        "use": asdict(use),
        "machine": matrix.machine.model_dump(),
        "turn_s": matrix.machine.turn_s,
        "base": identity,
        "workers": [worker.model_dump(exclude={"pid", "url"}) for worker in system.workers],
        "environment": found,
    }
    write_whole(result, json.dumps(facts, indent=1) + "\n")


def _check_free(output: Path, matrix: Matrix) -> None:
    """Runs of one folder are compared with each other, so they must come from one matrix."""
    if output.exists() and not output.is_dir():
        raise UserError(f"OUTPUT {output} is a file; give a folder, which need not exist")
    with suppress(FileNotFoundError, NotADirectoryError):
        if not _is(matrix, (output / MATRIX).read_text()):
            raise UserError(f"{output} holds the runs of another matrix; give another folder, or remove it")


def _claim(output: Path, matrix: Matrix) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / MATRIX, matrix.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"OUTPUT {output}: cannot write there: {error.strerror}; give another folder") from None


def _is(matrix: Matrix, written: str) -> bool:
    """Compared as read, so that a matrix from before there was some field is the same as with its default."""
    with suppress(ValidationError):
        return Matrix.model_validate_json(written) == matrix
    return False


def _check_same(output: Path, identity: str, here: Mapping[str, Any]) -> None:
    """What is left of a matrix runs on a machine like the one that began it, with the same base: its loads are compared
    with each other. What records do not say is taken for different."""
    for file in sorted((output / "runs").glob("*.json")):
        facts = json.loads(file.read_text())
        if facts.get("base") != identity:
            raise UserError(
                f"{output} holds runs of another base, or of a version that did not record which; go on with that one, "
                "or give another folder"
            )
        there = facts["environment"]
        if differing := [key for key, value in here.items() if there.get(key) != value]:
            was, now = (
                " and ".join(f"{key} {found.get(key, 'not recorded')}" for key in differing) for found in (there, here)
            )
            raise UserError(
                f"{output} holds runs made with {was}, and here it is {now}: go on with them on a machine like the "
                "first, or give another folder"
            )


def _check_ends(each: Run, workload: Workload, limit_s: float) -> None:
    arrivals, sessions = each.arrivals(workload), len(workload.sessions)
    if isinstance(arrivals, Trace) and (last := max(arrivals.times(sessions))) >= limit_s:
        raise UserError(
            f"load {each.load!r}: the last of {sessions} sessions of {each.workload.source!r} arrives after {last:g} "
            f"s, and limit_s={limit_s:g}; give fewer sessions or minutes, a higher limit_s, or a faster trace:SPEED"
        )


def _check_enough(each: Run, workload: Workload) -> None:
    arrivals, sessions = parse_arrivals(each.load), len(workload.sessions)
    if isinstance(arrivals, Closed) and sessions < arrivals.concurrent:
        raise UserError(
            f"load {each.load!r}: {each.workload.source!r} has {sessions} sessions; give closed:{sessions} or less, or "
            "more sessions"
        )


def _check_played_before(output: Path, each: Run, workload: Workload, digest: str, repeats: int) -> None:
    """Systems are compared on the same sessions, and a role must have the same model on all of them; what is drawn
    differs from repeat to repeat, what a file holds does not. Runs that do not say which roles there were had those of
    the sessions that were drawn; those that do not say which sessions they played are taken to have played these."""
    names, roles = model_names(each.models), workload.roles()
    alike = (each.repeat,) if is_drawn(each) else range(repeats)
    for system, repeat in product(SYSTEMS, alike):
        file = _result(output, replace(each, system=system, repeat=repeat))
        if not file.exists():
            continue
        facts = json.loads(file.read_text())
        if facts.get("sessions_digest", digest) != digest:
            raise UserError(
                f"{output} holds {file.stem}, which played other sessions than {each.workload.source!r} has now; go on "
                "with the file of then, or give another folder"
            )
        before = replace(workload, declared=tuple(facts.get("roles", ()))).roles()
        if any(cast(session, before, names) != cast(session, roles, names) for session in workload.sessions):
            raise UserError(
                f"{output} holds {file.stem}, whose roles were {', '.join(before)}; now they are {', '.join(roles)}, "
                "which have other models; give another folder"
            )


def _result(output: Path, each: Run) -> Path:
    return output / "runs" / f"{each.name}.json"


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Time left goes by the runs that are done, which take minutes each.
    return Progress(*columns, console=console, speed_estimate_period=24 * 3600, refresh_per_second=1)


def _show(progress: Progress, task: Any, what: str, done: int) -> None:
    progress.update(task, description=what, advance=done)
    if not progress.console.is_terminal:
        how_far = _how_far(progress.tasks[task]) if done else ""
        told = f"{datetime.now():%H:%M:%S} {'done: ' if done else ''}{what}{how_far}"
        progress.console.print(told, markup=False, highlight=False, soft_wrap=True)


def _how_far(task: Task) -> str:
    """Of runs; time left goes by those that are done, as long as there are others."""
    total = int(task.total or 0)
    left = total - task.completed
    ahead = f", about {_in_words((task.elapsed or 0.0) / task.completed * left)} left" if left else ""
    return f" ({task.completed:.0f} of {total}{ahead})"


def _in_words(seconds: float) -> str:
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
