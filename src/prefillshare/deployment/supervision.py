"""One worker's life: start, become healthy, be watched, die, start again."""

import asyncio
import contextlib
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp

from prefillshare.deployment.events import Event, EventKind
from prefillshare.deployment.guard import Guard
from prefillshare.deployment.ports import others_on
from prefillshare.deployment.processes import end, how_it_ended, kill_group, members, spawn, tail
from prefillshare.engine.command import worker_command, worker_environment
from prefillshare.engine.worker import WorkerSpec
from prefillshare.errors import UserError
from prefillshare.open_files import ran_out
from prefillshare.urls import http_url

State = Literal["waiting", "starting", "ready", "unhealthy", "restarting", "stopping", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient supervision is, in seconds."""

    probe_every: float = 1.0
    probe_timeout: float = 5.0
    hang_after: float = 60.0  # alive without a healthy answer for this long counts as dead
    first_backoff: float = 1.0
    longest_backoff: float = 60.0
    forget_deaths_after: float = 120.0  # healthy for this long: the next death backs off from the start again
    grace: float = 10.0


DEFAULT_TIMING = Timing()


class Death(NamedTuple):
    """The end of one process of a worker."""

    reason: str
    healthy_s: float  # since it was ready; 0: it never was


class StartupFailed(Exception):
    """A worker did not come up. The message ends with what it last wrote to its log."""


class WorkerProcess:
    """A supervised worker. `state`, `pid`, `restarts` and `since` are for showing; only this class sets them."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        log: Path,
        environment: Mapping[str, str],
        startup_timeout_s: float,
        timing: Timing,
        guard: Guard,
        starting: asyncio.Semaphore,
        report: Callable[[Event], None],
    ) -> None:
        self.spec = spec
        self.log = log
        self.state: State = "waiting"
        self.restarts = 0
        self.since = time.monotonic()
        self.ready = asyncio.Event()
        self._environment = {**environment, **worker_environment(spec)}
        self._startup_timeout_s = startup_timeout_s
        self._timing = timing
        self._guard = guard
        self._starting = starting
        self._report = report
        self._process: Process | None = None
        self._let_go = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def url(self) -> str:
        return http_url(self.spec.host, self.spec.port)

    async def live(self) -> None:
        """Starts the worker and keeps it running until cancelled; every process is gone when this returns.

        Raises:
            StartupFailed: it never became healthy. Later deaths are not raised: it is started again, for ever.
        """
        deaths = 0
        while not self._let_go:
            death = await self._run_once()
            if self._let_go:
                break
            self._say("died", f"died: {death.reason}", reason=death.reason)
            if not self.ready.is_set():
                self._enter("failed")
                raise StartupFailed(self._startup_failure(death.reason))
            deaths = 1 if death.healthy_s > self._timing.forget_deaths_after else deaths + 1
            await self._back_off(deaths)
        self._enter("stopped")
        self._say("stopped", "ended after it was removed; it is not started again")
        await asyncio.Event().wait()  # the deployment goes on without it

    def let_go(self) -> None:
        """The router has it no more: it runs until somebody ends it, and is not started again then."""
        self._let_go = True
        self._say("removed", "removed from the router; when it ends, it is not started again", pid=self.pid)

    def take_back(self) -> None:
        """The router has it again. One that has ended meanwhile stays so: what answers there is somebody else's."""
        if self._let_go and self._process is not None:
            self._let_go = False
            self._say("added", "added to the router again", pid=self.pid)

    def kill(self) -> None:
        """Ends all of its processes at once; for a stop that takes too long."""
        if self._process is not None:
            kill_group(self._process.pid)

    async def _run_once(self) -> Death:
        """From start to death. The whole process group is gone by then."""
        process = None
        grace_s = 0.0  # a worker that is starting, dead or hung gets none: there is nothing to lose
        try:
            async with self._starting:
                self._enter("starting")
                try:
                    process = self._process = await spawn(
                        worker_command(self.spec), environment=self._environment, log=self.log
                    )
                # No log folder, no room on the disk, no memory to fork, a module's files gone: the next start may find
                # it mended, and the deployment's other workers have nothing to do with it.
                except (OSError, UserError) as error:
                    return Death(f"could not be started: {error}", 0.0)
                self._guard.watch(process.pid)
                self._say("started", f"started, pid {process.pid}, log {self.log}", pid=process.pid)
                failure = await self._until_ready(process)
            if failure is not None:
                return Death(failure, 0.0)
            ready_at = time.monotonic()
            grace_s = self._timing.grace
            reason = await self._until_death(process)
            grace_s = 0.0
            return Death(reason, time.monotonic() - ready_at)
        except asyncio.CancelledError:
            self._enter("stopping")
            raise
        finally:
            if process is not None:
                await end(process, grace_s=grace_s)
                self._guard.forget(process.pid)
                self._process = None
            if self.state == "stopping":
                self._enter("stopped")
                self._say("stopped", "stopped")

    async def _until_ready(self, process: Process) -> str | None:
        """None once healthy, else why it will not be."""
        deadline = time.monotonic() + self._startup_timeout_s
        started = self.since
        async with self._probe() as client:
            while time.monotonic() < deadline:
                if process.returncode is not None:
                    return how_it_ended(process.returncode)
                if await self._is_healthy(client) and (others := self._others(process)) is not None:
                    if others:
                        return f"its port {self.spec.port} {others}; end that, or change workers.first_port"
                    self._enter("ready")
                    self.ready.set()
                    seconds = self.since - started
                    self._say("ready", f"ready after {seconds:.1f} s", pid=process.pid, seconds=round(seconds, 1))
                    return None
                await self._wait(process)
        return f"not healthy within {self._startup_timeout_s:.0f} s (workers.startup_timeout_s)"

    async def _until_death(self, process: Process) -> str:
        async with self._probe() as client:
            last_answer = time.monotonic()
            while True:
                await self._wait(process)
                if process.returncode is not None:
                    return how_it_ended(process.returncode)
                healthy = await self._is_healthy(client)
                if healthy is not False:  # where it could not be asked, it was not silent
                    last_answer = time.monotonic()
                    if healthy and self.state == "unhealthy":
                        self._enter("ready")
                    continue
                silent_s = time.monotonic() - last_answer
                if silent_s > self._timing.hang_after:
                    return f"no healthy answer for {silent_s:.0f} s"
                if self.state == "ready":
                    self._enter("unhealthy")

    def _probe(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timing.probe_timeout))

    async def _is_healthy(self, client: aiohttp.ClientSession) -> bool | None:
        """None: it cannot be asked, since this process has too many files open."""
        try:
            async with client.get(f"{self.url}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError) as error:
            return None if ran_out(error) else False

    def _others(self, process: Process) -> str | None:
        """Who answers on its port in its place: vLLM's port is free to others as long as it loads. Empty: nobody does;
        None: that cannot be told, since this process has too many files open."""
        try:
            return others_on(self.spec.port, members(process.pid)) or ""
        except OSError:
            return None

    async def _wait(self, process: Process) -> None:
        """One probing interval, or less if the process ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._timing.probe_every)

    async def _back_off(self, deaths: int) -> None:
        doublings = min(deaths - 1, 32)  # after days of deaths, 2 to their number is none that a float holds
        delay = min(self._timing.first_backoff * 2**doublings, self._timing.longest_backoff)
        self.restarts += 1
        self._enter("restarting")
        self._say("restarting", f"starting again in {delay:.1f} s", delay_s=delay, restarts=self.restarts)
        await asyncio.sleep(delay)

    def _startup_failure(self, reason: str) -> str:
        last = tail(self.log)
        models = ", ".join(self.spec.served_names)
        return (
            f"worker {self.spec.name} ({models}, port {self.spec.port}) did not start: {reason}\n"
            f"the end of {self.log}:\n{last or '(empty)'}"
        )

    def _enter(self, state: State) -> None:
        self.state = state
        self.since = time.monotonic()

    def _say(self, kind: EventKind, text: str, **facts: Any) -> None:
        self._report(Event(kind, self.spec.name, text, facts))
