import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from prefillshare.deployment.processes import end, how_it_ended, members, spawn, tail

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-63, "signal 63")]
)
def test_an_end_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_tail_is_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_bytes(b"x" * 70000 + b"\n" + "".join(f"line {n}\n" for n in range(30)).encode() + b"\xff\n")
    assert tail(log, lines=3) == "line 28\nline 29\n\N{REPLACEMENT CHARACTER}"


async def test_ending_takes_the_whole_group(tmp_path: Path) -> None:
    script = f"import subprocess, time; subprocess.Popen({SLEEP!r}); print('up', flush=True); time.sleep(600)"
    log = tmp_path / "log"
    process = await spawn([*SLEEP[:-1], script], environment=os.environ, log=log)
    while not log.read_text():
        assert process.returncode is None
    assert len(members(process.pid)) == 2
    assert os.getsid(process.pid) == process.pid
    await end(process, grace_s=0)
    assert members(process.pid) == []
    assert process.returncode == -signal.SIGKILL


async def test_asked_to_stop_before_being_killed(tmp_path: Path) -> None:
    process = await spawn(SLEEP, environment=os.environ, log=tmp_path / "log")
    await end(process, grace_s=5)
    assert process.returncode == -signal.SIGTERM


async def test_ending_a_process_that_has_ended(tmp_path: Path) -> None:
    process = await spawn([sys.executable, "-I", "-S", "-c", ""], environment=os.environ, log=tmp_path / "log")
    await process.wait()
    await end(process, grace_s=5)
    assert process.returncode == 0


async def test_the_end_is_waited_for_while_it_cannot_be_seen(
    tmp_path: Path, no_files_left: Callable[[], AbstractContextManager[None]]
) -> None:
    process = await spawn(SLEEP, environment=os.environ, log=tmp_path / "log")
    with no_files_left():
        ending = asyncio.create_task(end(process, grace_s=0))
        await asyncio.sleep(0.3)
        assert not ending.done()
    await ending
    assert process.returncode == -signal.SIGKILL


def test_a_child_dies_with_the_process_that_spawned_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, pathlib, sys\n"
        "from prefillshare.deployment.processes import spawn\n"
        "async def main():\n"
        f"    process = await spawn({SLEEP!r}, environment=os.environ, log=pathlib.Path(sys.argv[1]))\n"
        "    print(process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    parent = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10  # the signal is on its way when the parent is gone, not there
    while (left := members(int(parent.stdout))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
