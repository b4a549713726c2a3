"""Carries out a plan on the workers of a deployment, which restarts those that die."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from experiments.chaos.plan import Part, Strike
from prefillshare.deployment.supervision import WorkerProcess

MOST_DOWN = 2  # killed and not ready again: more at a time would only show that nothing serves


class Havoc:
    """`say` is told of every strike. Leaving the context lets go on whatever is stopped."""

    def __init__(self, workers: Sequence[WorkerProcess], say: Callable[[dict[str, Any]], None]) -> None:
        self._workers = workers
        self._say = say
        self._stopped: dict[int, int] = {}  # how often, by process

    async def run(self, plan: Sequence[Strike]) -> None:
        """Returns when the last strike is over. Cancelled, it lets go on what it has stopped."""
        started = time.monotonic()
        try:
            async with asyncio.TaskGroup() as strikes:
                for strike in plan:
                    await asyncio.sleep(strike.at_s - (time.monotonic() - started))
                    strikes.create_task(self._strike(strike))
        finally:
            for pid in list(self._stopped):
                _send(pid, signal.SIGCONT)

    async def _strike(self, strike: Strike) -> None:
        worker = self._workers[strike.worker]
        pids = _processes(worker, strike.part)
        down = sum(other.state != "ready" for other in self._workers)
        done = worker.state == "ready" and bool(pids) and (strike.kind == "stop" or down < MOST_DOWN)
        self._say(
            {
                "event": strike.kind if done else "skipped",
                "worker": worker.spec.name,
                "part": strike.part,
                "seconds": strike.seconds,
            }
        )
        if not done:
            return
        if strike.kind == "kill":
            for pid in pids:
                _send(pid, signal.SIGKILL)
            return
        self._stop(pids)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            self._go_on(pids)
        self._say({"event": "continue", "worker": worker.spec.name})

    def _stop(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._stopped[pid] = self._stopped.get(pid, 0) + 1
            _send(pid, signal.SIGSTOP)

    def _go_on(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._stopped[pid] -= 1
            if not self._stopped[pid]:  # two stops of a process may overlap
                del self._stopped[pid]
                _send(pid, signal.SIGCONT)


def _processes(worker: WorkerProcess, part: Part) -> list[int]:
    """The worker's processes: its leader is the HTTP server, whose child has the engine."""
    leader = worker.pid
    if leader is None:
        return []
    try:
        children = [child.pid for child in psutil.Process(leader).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    return {"all": [leader, *children], "server": [leader], "engine": children}[part]


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
