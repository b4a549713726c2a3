"""Puts the engines of running workers on their cores, and behind those that go first there.

A core stands for a device, and a device runs the model alone: the engine is a child process of its worker's API server,
and only the child is pinned, to one core or to several that it computes on together. API servers, the router and the
driver run wherever there is time, as they would on the host of a device.

A worker that is pinned from its start loads its model on that core alone: eight on two cores then take over twice as
long as eight that may use both until they are ready. What is measured begins after that.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable

import psutil

_LEAST_EAGER = 19  # of what Linux knows


def pin_engine(server: int, cores: Iterable[int]) -> None:
    """Lets all threads of the descendants of an API server run on `cores` alone; threads to come inherit that.

    Raises:
        psutil.NoSuchProcess: the server is gone.
        OSError: a core does not exist or may not be used.
    """
    wanted = set(cores)

    def pin(task: int) -> None:
        os.sched_setaffinity(task, wanted)  # of several cores it takes those that there are, and says nothing
        if missing := wanted - os.sched_getaffinity(task):
            raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: cores {sorted(missing)}")

    _change_all(server, os.sched_getaffinity, wanted, pin)


def give_way(server: int, niceness: int) -> None:
    """Has all threads of the descendants of an API server compute at that niceness, on top of the server's own;
    threads to come inherit it.

    Raises:
        psutil.NoSuchProcess: the server is gone.
    """
    wanted = min(psutil.Process(server).nice() + niceness, _LEAST_EAGER)
    _change_all(
        server,
        lambda task: os.getpriority(os.PRIO_PROCESS, task),
        wanted,
        lambda task: os.setpriority(os.PRIO_PROCESS, task, wanted),
    )


def _change_all(server: int, read: Callable[[int], object], wanted: object, change: Callable[[int], None]) -> None:
    # Again until nothing is found loose: a thread that was just begun by a loose one is loose too.
    while loose := [task for task in _tasks_of_descendants(server) if _is_loose(task, read, wanted)]:
        for task in loose:
            with contextlib.suppress(ProcessLookupError):
                change(task)


def _tasks_of_descendants(pid: int) -> list[int]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [thread.id for thread in process.threads()]
    return found


def _is_loose(task: int, read: Callable[[int], object], wanted: object) -> bool:
    """Not of one that has ended."""
    try:
        return read(task) != wanted
    except ProcessLookupError:
        return False
