"""Puts running workers on their cores.

A worker that is pinned from its start loads its model on that core alone: eight on two cores then take over twice as
long as eight that may use both until they are ready. What is measured begins after that.
"""

import contextlib
import os

import psutil


def pin(pid: int, core: int) -> None:
    """Lets the process, its descendants and all their threads run on `core` alone; threads to come inherit that.

    Raises:
        ProcessLookupError: the process is gone.
        OSError: the core does not exist or may not be used.
    """
    os.sched_setaffinity(pid, {core})
    # Again until nothing is found loose: a thread that was just begun by a loose one is loose too.
    while loose := [task for task in _tasks(pid) if _cores(task) not in ({core}, set())]:
        for task in loose:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, {core})


def _tasks(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [thread.id for thread in process.threads()]
    return found


def _cores(task: int) -> set[int]:
    """Empty for one that has ended."""
    try:
        return os.sched_getaffinity(task)
    except ProcessLookupError:
        return set()
