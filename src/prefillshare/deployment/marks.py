"""A mark in the environment by which a later run finds what an earlier one could not end. Linux only.

The mark says which deployment a process belongs to and which supervisor started it, by a pid that means something in
one PID namespace only; children inherit it. A file of pids would go stale and know nothing of a worker's own children.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import psutil

from prefillshare.config import Deployment

_MARK = "PREFILLSHARE_DEPLOYMENT"
# setproctitle, which vLLM uses, zeroes the environment that others can read in /proc unless this is set.
_KEEP_ENVIRONMENT_READABLE = {"SPT_NOENV": "1"}
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process of this deployment, started by the supervisor `supervisor_pid`.

    `elsewhere`: that is a pid of another PID namespace, such as a container's. It counts as alive, since that cannot be
    told from here and what is taken for dead is killed.
    """

    pid: int
    supervisor_pid: int
    supervisor_alive: bool
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class _Mark:
    supervisor: int
    started: str  # in ticks: `_start_ticks`
    namespace: str  # the supervisor's; "" in marks of versions that did not say
    deployment: str

    @classmethod
    def read(cls, value: str) -> Self:
        supervisor, started, rest = value.split(":", 2)
        namespace, _, deployment = ("", "", rest) if rest.startswith("/") else rest.partition(":")
        return cls(int(supervisor), started, namespace, deployment)

    def __str__(self) -> str:
        return f"{self.supervisor}:{self.started}:{self.namespace}:{self.deployment}"

    @property
    def elsewhere(self) -> bool:
        return self.namespace not in ("", _namespace())

    @property
    def own(self) -> bool:
        """Whether this process made it."""
        return self.supervisor == os.getpid() and not self.elsewhere

    @property
    def alive(self) -> bool:
        return self.elsewhere or _start_ticks(self.supervisor) == self.started


def deployment_name(deployment: Deployment) -> str:
    """What tells deployments on one machine apart: the folder they log to."""
    return str(deployment.log_dir.resolve())


def mark(deployment: str) -> dict[str, str]:
    """Environment that marks a process and its descendants as started by this process for `deployment`."""
    supervisor = os.getpid()
    made = _Mark(supervisor, _start_ticks(supervisor), _namespace(), deployment)
    return {_MARK: str(made), **_KEEP_ENVIRONMENT_READABLE}


def marked(deployment: str) -> list[Leftover]:
    """Processes that carry the mark of `deployment`, whoever started them, without this process's own."""
    return [
        Leftover(pid, found.supervisor, found.alive, found.elsewhere)
        for pid, found in _marks()
        if found.deployment == deployment and not found.own
    ]


def end_own(deployment: str) -> None:
    """Kills every process of `deployment` that this process started and did not end: the last net of a stop."""
    while left := [pid for pid, found in _marks() if found.deployment == deployment and found.own]:
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


def _marks() -> Iterator[tuple[int, _Mark]]:
    for process in psutil.process_iter():
        try:
            value = process.environ().get(_MARK)
        except psutil.Error:  # ended meanwhile, a zombie, or another user's
            continue
        if value:
            yield process.pid, _Mark.read(value)


@cache
def _namespace() -> str:
    """The PID namespace of this process, by its inode; a process cannot leave it."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _start_ticks(pid: int) -> str:
    """When a process started, in clock ticks since boot; tells a pid from its reuse. "" when it does not run.

    Not psutil's create_time, which moves when the system's clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
