import asyncio
import errno
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from prefillshare.deployment.events import Event
from prefillshare.deployment.local import LocalDeployment
from prefillshare.deployment.processes import members
from prefillshare.deployment.supervision import StartupFailed, Timing, WorkerProcess
from prefillshare.errors import UserError
from prefillshare.router.pool import Worker
from tests.deployment.fakes import QUICK, fake_workers, free_ports, make_deployment, processes_of

# Where hanging is what is tested: elsewhere a machine that is busy for a moment must make no worker hang.
IMPATIENT = replace(QUICK, hang_after=0.6)


class Run:
    """A deployment of fakes, its events, and the files that make its workers misbehave."""

    def __init__(self, folder: Path, startup_timeout_s: float = 30.0, timing: Timing = QUICK) -> None:
        ports = free_ports(3)
        self.deployment = make_deployment(folder, ports=ports, startup_timeout_s=startup_timeout_s)
        self.control = folder / "control"
        self.events: list[Event] = []
        with fake_workers(self.deployment, ports[1:]):
            self.local = LocalDeployment(self.deployment, timing=timing)
        self.local.listeners.append(self.events.append)
        self.patches = fake_workers(self.deployment, ports[1:])

    @property
    def decode(self) -> WorkerProcess:
        return next(worker for worker in self.local.workers if worker.spec.role == "decode")

    @property
    def pauses(self) -> list[float]:
        return [event.facts["delay_s"] for event in self.events if event.kind == "restarting"]

    @property
    def reasons(self) -> list[str]:
        return [event.facts["reason"] for event in self.events if event.kind == "died"]

    def kinds(self, worker: str) -> list[str]:
        return [event.kind for event in self.events if event.worker == worker]

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110  (what is waited for has no event)
                await asyncio.sleep(0.02)


async def test_a_killed_worker_is_started_again_and_its_whole_group_is_gone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            first = run.decode.pid
            assert first is not None
            assert len(members(first)) == 2  # the fake has a child that outlives it, as vLLM's engine core does
            os.kill(first, signal.SIGKILL)
            await run.until(lambda: run.kinds("decode-sql-0").count("ready") == 2)
            assert members(first) == []
            assert run.decode.pid not in (None, first)
            assert run.decode.restarts == 1
    assert run.kinds("decode-sql-0") == ["started", "ready", "died", "restarting", "started", "ready", "stopped"]
    died = next(event for event in run.events if event.kind == "died")
    assert died.facts == {"reason": "SIGKILL"}
    assert run.kinds("prefill-0") == ["started", "ready", "stopped"]


async def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    run = Run(tmp_path, timing=IMPATIENT)
    with run.patches:
        async with run.local:
            hung = run.decode.pid
            (run.control / "decode-sql-0.hang").touch()
            await run.until(lambda: run.decode.state == "unhealthy")
            await run.until(lambda: "died" in run.kinds("decode-sql-0"))
            (run.control / "decode-sql-0.hang").unlink()
            await run.until(lambda: run.decode.state == "ready")
            assert run.decode.pid != hung
    died = next(event for event in run.events if event.kind == "died")
    assert "no healthy answer" in died.facts["reason"]


async def test_a_short_silence_is_no_death(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            (run.control / "decode-sql-0.hang").touch()
            await run.until(lambda: run.decode.state == "unhealthy")
            (run.control / "decode-sql-0.hang").unlink()
            await run.until(lambda: run.decode.state == "ready")
    assert run.kinds("decode-sql-0") == ["started", "ready", "stopped"]


async def test_a_worker_that_cannot_be_asked_is_not_ended(
    tmp_path: Path, no_files_left: Callable[[], AbstractContextManager[None]]
) -> None:
    run = Run(tmp_path, timing=IMPATIENT)
    with run.patches:
        async with run.local:
            with no_files_left():
                await asyncio.sleep(2 * IMPATIENT.hang_after)
            assert run.decode.state == "ready"
            await asyncio.sleep(2 * IMPATIENT.probe_every)
            assert run.decode.state == "ready"
    assert run.kinds("decode-sql-0") == ["started", "ready", "stopped"]


async def test_a_worker_that_dies_while_no_file_can_be_opened_ends_nothing_else(
    tmp_path: Path, no_files_left: Callable[[], AbstractContextManager[None]]
) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            waiting = asyncio.create_task(run.local.wait())
            assert run.decode.pid is not None
            with no_files_left():
                os.kill(run.decode.pid, signal.SIGKILL)
                await asyncio.sleep(0.5)
            await run.until(lambda: run.kinds("decode-sql-0").count("ready") == 2)
            assert not waiting.done()
            waiting.cancel()
    assert run.kinds("prefill-0") == ["started", "ready", "stopped"]


async def test_a_worker_is_ready_once_it_can_be_told_that_the_port_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looks = Run(tmp_path), iter([OSError(errno.EMFILE, "Too many open files")])

    def look(port: int, group: list[int]) -> str | None:
        if error := next(looks, None):
            raise error
        return None

    monkeypatch.setattr("prefillshare.deployment.supervision.others_on", look)
    with run.patches:
        async with run.local:
            assert {worker.state for worker in run.local.workers} == {"ready"}
    assert "died" not in {event.kind for event in run.events}


async def test_deaths_back_off_exponentially_and_never_give_up(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            (run.control / "decode-sql-0.crash").touch()
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.decode.restarts == 5)
            (run.control / "decode-sql-0.crash").unlink()
            await run.until(lambda: run.decode.state == "ready")
    assert run.pauses[:5] == [0.05, 0.1, 0.2, 0.2, 0.2]


async def test_starts_that_fail_after_a_long_healthy_life_back_off_as_well(tmp_path: Path) -> None:
    """Only the life that has just ended counts, not when the worker was last healthy."""
    run = Run(tmp_path, timing=replace(QUICK, forget_deaths_after=0.5))
    with run.patches:
        async with run.local:
            await asyncio.sleep(0.7)
            (run.control / "decode-sql-0.crash").touch()
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.decode.restarts == 5)
            (run.control / "decode-sql-0.crash").unlink()
            await run.until(lambda: run.decode.state == "ready")
            await asyncio.sleep(0.7)
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.reasons.count("SIGKILL") == 2 and run.decode.state == "ready")
    assert run.pauses[:5] == [0.05, 0.1, 0.2, 0.2, 0.2]
    assert run.pauses[-1] == 0.05


async def test_the_pause_after_any_number_of_deaths_is_the_longest_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.decode._back_off(100_000)
    assert run.pauses == [0.2]


async def test_a_worker_that_cannot_be_started_again_for_now_is_tried_again(tmp_path: Path) -> None:
    """Its log cannot be opened. The other worker lives on."""
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            waiting = asyncio.create_task(run.local.wait())
            shutil.rmtree(run.deployment.log_dir)
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.decode.restarts == 3)
            assert not waiting.done()
            assert run.decode.pid is None
            run.deployment.log_dir.mkdir()
            await run.until(lambda: run.decode.state == "ready")
            waiting.cancel()
    assert run.kinds("prefill-0") == ["started", "ready", "stopped"]
    assert run.reasons[0] == "SIGKILL"
    assert "could not be started" in run.reasons[1]
    assert "decode-sql-0.log" in run.reasons[1]
    assert processes_of(run.deployment) == []


def no_command(spec: object) -> list[str]:
    raise UserError("module: its files are gone")


async def test_a_worker_whose_files_are_gone_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            monkeypatch.setattr("prefillshare.deployment.supervision.worker_command", no_command)
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.decode.restarts == 2)
            monkeypatch.undo()
            await run.until(lambda: run.decode.state == "ready")
    assert run.reasons[1] == "could not be started: module: its files are gone"


async def test_a_first_start_that_is_not_possible_ends_the_deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    with run.patches:
        monkeypatch.setattr("prefillshare.deployment.supervision.worker_command", no_command)
        with pytest.raises(StartupFailed, match="could not be started: module: its files are gone"):
            await run.local.__aenter__()
        monkeypatch.undo()
    assert processes_of(run.deployment) == []


async def test_a_death_at_the_first_start_ends_the_deployment_and_shows_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.control / "decode-sql-0.crash").touch()
    with run.patches, pytest.raises(StartupFailed) as failure:
        await run.local.__aenter__()
    message = str(failure.value)
    assert "decode-sql-0" in message
    assert "exit code 3" in message
    assert message.endswith("RuntimeError: out of luck")
    assert run.decode.state == "failed"
    assert processes_of(run.deployment) == []


async def test_a_worker_that_never_gets_healthy_runs_into_the_startup_timeout(tmp_path: Path) -> None:
    run = Run(tmp_path, startup_timeout_s=0.8)
    (run.control / "prefill-0.never").touch()
    with run.patches, pytest.raises(StartupFailed, match=r"workers\.startup_timeout_s") as failure:
        await run.local.__aenter__()
    assert "prefill-0 says hello" in str(failure.value)
    assert processes_of(run.deployment) == []


async def test_what_another_process_answers_on_its_port_does_not_make_a_worker_ready(tmp_path: Path) -> None:
    """Another deployment's worker, which began to load first: this one could bind the port, too, and cannot listen."""
    run = Run(tmp_path)
    (run.control / "prefill-0.late").touch()

    async def healthy(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    port = run.local.workers[0].spec.port
    async with await asyncio.start_server(healthy, "127.0.0.1", port):
        with run.patches, pytest.raises(StartupFailed) as failure:
            await run.local.__aenter__()
    assert f"port {port} is in use by pid {os.getpid()} (" in str(failure.value)
    assert "workers.first_port" in str(failure.value)
    assert "ready" not in run.kinds("prefill-0")
    assert processes_of(run.deployment) == []


async def test_a_worker_deaf_to_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.control / "decode-sql-0.deaf").touch()
    with run.patches:
        async with run.local:
            pass
    assert processes_of(run.deployment) == []
    assert run.kinds("decode-sql-0")[-1] == "stopped"


async def test_a_worker_that_was_removed_from_the_router_is_not_started_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            worker = Worker("any name", "decode", run.decode.url)
            run.local._follow("left", worker)
            assert run.decode.state == "ready"  # it runs on
            waiting = asyncio.create_task(run.local.wait())
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.decode.state == "stopped")
            run.local._follow("joined", worker)  # another process at its address
            await asyncio.sleep(0.3)
            assert run.decode.state == "stopped"
            assert not waiting.done()  # the deployment goes on
            waiting.cancel()
    assert run.kinds("decode-sql-0") == ["started", "ready", "removed", "stopped"]
    assert processes_of(run.deployment) == []


async def test_a_worker_that_was_removed_while_it_was_down_stays_down(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            (run.control / "decode-sql-0.crash").touch()
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.decode.restarts == 2)
            run.local._follow("left", Worker("decode-sql-0", "decode", run.decode.url))
            await run.until(lambda: run.decode.state == "stopped")
    kinds = run.kinds("decode-sql-0")
    assert kinds[kinds.index("removed") :] == ["removed", "stopped"]


async def test_a_worker_that_is_added_again_before_it_ended_is_looked_after_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.patches:
        async with run.local:
            for change in ("left", "joined"):
                run.local._follow(change, Worker("decode-sql-0", "decode", run.decode.url))
            assert run.decode.pid is not None
            os.kill(run.decode.pid, signal.SIGKILL)
            await run.until(lambda: run.kinds("decode-sql-0").count("ready") == 2)
    kinds = run.kinds("decode-sql-0")
    assert kinds[:5] == ["started", "ready", "removed", "added", "died"]
    assert run.kinds("prefill-0") == ["started", "ready", "stopped"]
