"""A mark in the environment by which a later run finds what an earlier one could not end. Linux only.

The mark says which deployment a process belongs to and which supervisor started it; children inherit it. A file of pids
would go stale and know nothing of a worker's own children.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from prefillshare.config import Deployment

_MARK = "PREFILLSHARE_DEPLOYMENT"
# setproctitle, which vLLM uses, zeroes the environment that others can read in /proc unless this is set.
_KEEP_ENVIRONMENT_READABLE = {"SPT_NOENV": "1"}
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process of this deployment, started by the supervisor `supervisor_pid`."""

    pid: int
    supervisor_pid: int
    supervisor_alive: bool


def deployment_name(deployment: Deployment) -> str:
    """What tells deployments on one machine apart: the folder they log to."""
    return str(deployment.log_dir.resolve())


def mark(deployment: str) -> dict[str, str]:
    """Environment that marks a process and its descendants as started by this process for `deployment`."""
    supervisor = os.getpid()
    return {_MARK: f"{supervisor}:{_start_ticks(supervisor)}:{deployment}", **_KEEP_ENVIRONMENT_READABLE}


def marked(deployment: str) -> list[Leftover]:
    """Processes that carry the mark of `deployment`, whoever started them, without this process's own."""
    return [
        Leftover(pid, supervisor, _is_alive(supervisor, started))
        for pid, supervisor, started, name in _marks()
        if name == deployment and supervisor != os.getpid()
    ]


def end_own(deployment: str) -> None:
    """Kills every process of `deployment` that this process started and did not end: the last net of a stop."""
    while left := [pid for pid, parent, _, name in _marks() if name == deployment and parent == os.getpid()]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


async def end_leftovers(deployment: str) -> list[int]:
    """Kills what a supervisor of `deployment` that no longer runs has left; returns the pids."""
    ended: list[int] = []
    while left := [process.pid for process in marked(deployment) if not process.supervisor_alive]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended += [pid for pid in left if pid not in ended]
        await asyncio.sleep(_POLL_S)
    return ended


def _marks() -> Iterator[tuple[int, int, str, str]]:
    for process in psutil.process_iter():
        try:
            value = process.environ().get(_MARK)
        except psutil.Error:  # ended meanwhile, a zombie, or another user's
            continue
        if value:
            supervisor, started, deployment = value.split(":", 2)
            yield process.pid, int(supervisor), started, deployment


def _is_alive(pid: int, started: str) -> bool:
    return _start_ticks(pid) == started


def _start_ticks(pid: int) -> str:
    """When a process started, in clock ticks since boot; tells a pid from its reuse. "" when it does not run.

    Not psutil's create_time, which moves when the system's clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
