"""Process groups that leave nothing behind. Linux only, as the engine is.

A vLLM worker is several processes, and nothing in vLLM ends the engine core when its API server is killed: it goes
on waiting for requests and keeps the worker's memory and ports. So a worker is always started as the leader of
its own session and always ended as a whole group. guard.py ends the groups when this process cannot any more, and by
marks.py a later run finds what even that has missed.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here because a forked child must not load anything
_POLL_S = 0.05


async def spawn(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path | None
) -> asyncio.subprocess.Process:
    """Starts `command` as the leader of a new session, its output appended to `log` or, if None, passed through.

    The leader is killed when this process ends, however that happens; for the rest of its group see guard.py.
    `environment` is the whole environment.
    """
    supervisor = os.getpid()

    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died between fork and prctl, so no signal will come
            os._exit(1)

    with contextlib.ExitStack() as files:
        output = files.enter_context(log.open("ab")) if log else None
        return await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            preexec_fn=in_child,
        )


async def end(process: asyncio.subprocess.Process, *, grace_s: float) -> None:
    """Ends the process and all of its group: asked to stop, then killed after `grace_s` seconds.

    Returns when no process of the group runs any more. A process that has already ended is fine: the rest of its
    group is killed.
    """
    group = process.pid
    if grace_s > 0 and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()  # the leader only: vLLM's API server takes its engine core down itself
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace_s)
    kill_group(group)
    await process.wait()
    while _may_run(group):
        kill_group(group)
        await asyncio.sleep(_POLL_S)


def kill_group(group: int) -> None:
    """SIGKILL to every process of the group; a group that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _may_run(group: int) -> bool:
    try:
        return bool(members(group))
    except OSError:  # this process can open no file: it will see later, and the deployment's other workers go on
        return True


def members(group: int) -> list[int]:
    """Pids of the group's processes, without zombies (nobody may be there to reap those).

    Raises:
        OSError: the system does not say, for want of a free file, say.
    """
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def how_it_ended(returncode: int) -> str:
    """A return code in words: "exit code 1" or "SIGKILL"."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def tail(log: Path, *, lines: int = 20) -> str:
    """The last lines of a log file, at most 64 KiB; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])
