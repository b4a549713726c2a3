"""A deployment as local processes: all workers, supervised, and the router in this process's event loop."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

import uvicorn
from rich.console import Console

from prefillshare import open_files
from prefillshare.config import Deployment
from prefillshare.deployment.console import lasting_console
from prefillshare.deployment.events import LOG, Event, EventLog
from prefillshare.deployment.guard import Guard
from prefillshare.deployment.log_dir import log_dir_or_error
from prefillshare.deployment.marks import deployment_name, end_leftovers, end_own, mark
from prefillshare.deployment.ports import bind, listen, router_port_or_error
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping, show_events, show_start
from prefillshare.deployment.supervision import DEFAULT_TIMING, StartupFailed, Timing, WorkerProcess
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.router.app import create_app
from prefillshare.router.drain import Drain
from prefillshare.router.fleet import Change
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router.server import server_config
from prefillshare.router.turned_away import TurnedAway
from prefillshare.router.worker_facts import WorkerFacts
from prefillshare.urls import http_url

# Worker start-up is bound by the CPU, yet overlapping helps: four at once on two cores were ready in 100 s, where
# one after the other takes 172 s. Beyond two a core they only push each other towards the start-up timeout.
_STARTING_PER_CORE = 2
_DRAIN_S = 5  # how long running calls may still take after a stop was asked for
_BREAK_OFF_S = 2  # to tell the clients of those that take longer; uvicorn itself would send them a bare 500


class LocalDeployment:
    """A running deployment, as an async context manager.

    Entering starts everything and returns when all workers are healthy and the router listens; leaving stops
    everything. No process is left behind, also when entering fails or is cancelled. `plan` stands in for `plan_workers`
    where workers are to be started with what the deployment file has no field for.

    Raises (on entering):
        StartupFailed: a worker did not become healthy.
        UserError: the router's port is taken, or was when the workers had started, or `log_dir` cannot be written.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        timing: Timing = DEFAULT_TIMING,
        plan: Callable[[Deployment], list[WorkerSpec]] | None = None,
    ) -> None:
        self.deployment = deployment
        self.listeners: list[Callable[[Event], None]] = []
        self._timing = timing
        self._guard = Guard()
        self._log_dir = deployment.log_dir
        self._tasks: list[asyncio.Task[None]] = []
        self._server: uvicorn.Server | None = None
        self._router: asyncio.Task[None] | None = None
        self._drain = Drain()
        self._turned_away = TurnedAway()
        starting = asyncio.Semaphore(_STARTING_PER_CORE * len(os.sched_getaffinity(0)))
        environment = {**os.environ, **mark(deployment_name(deployment))}
        self.workers = [
            WorkerProcess(
                spec,
                log=self._log_dir / f"{spec.name}.log",
                environment=environment,
                startup_timeout_s=deployment.workers.startup_timeout_s,
                timing=timing,
                guard=self._guard,
                starting=starting,
                report=self._report,
            )
            for spec in (plan or plan_workers)(deployment)
        ]

    @property
    def url(self) -> str:
        """Where clients connect, without a trailing slash or path."""
        return http_url(self.deployment.router.host, self.deployment.router.port)

    async def __aenter__(self) -> Self:
        with log_dir_or_error(self._log_dir):
            self._log_dir.mkdir(parents=True, exist_ok=True)
            for worker in self.workers:
                if worker.log.exists():  # so that a failure shows this run's log; the previous one is kept
                    worker.log.replace(worker.log.with_suffix(".log.1"))
            self._events = EventLog(self._log_dir)
        self.listeners.insert(0, self._events)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Waits until a part of it ends that is not restarted; raises what ended it."""
        parts = [*self._tasks, *([self._router] if self._router else [])]
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def drain(self) -> None:
        """Has the router take no more calls, and waits for those in flight, as long as `router.drain_timeout_s`.

        Until `stop` it answers new calls and health checks with a 503, so that a load balancer sends them elsewhere.
        """
        self._drain.begin()
        calls, limit_s = self._drain.in_flight, self.deployment.router.drain_timeout_s
        self._report(Event("draining", "", f"taking no more calls; {calls} in flight", {"calls": calls}))
        if not await self._drain.finished(limit_s):
            LOG.warning("%d call(s) did not end within %g s", self._drain.in_flight, limit_s)

    def kill(self) -> None:
        """Ends all workers at once; a drain or stop under way then has nothing left to wait for."""
        self._drain.give_up()
        if self._server is not None:
            self._server.force_exit = True
        for worker in self.workers:
            worker.kill()

    async def _start(self) -> None:
        router = self.deployment.router
        with router_port_or_error(router):
            held = bind(router.host, router.port)
        with held:
            ended = await end_leftovers(deployment_name(self.deployment))
            if ended:
                text = f"ended {len(ended)} process(es) that an earlier run left behind"
                self._report(Event("leftovers", "", text, {"pids": ended}))
            self._guard.start()
            self._tasks = [asyncio.create_task(worker.live(), name=worker.spec.name) for worker in self.workers]
            await self._until_all_ready()
            with router_port_or_error(router):
                listen(held)
            await self._start_router(held.dup())
        self._report(Event("serving", "", f"serving on {self.url}/v1", {"url": self.url}))

    async def _until_all_ready(self) -> None:
        ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait([ready, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()  # raises what ended it
        finally:
            ready.cancel()

    async def _all_ready(self) -> None:
        for worker in self.workers:
            await worker.ready.wait()

    async def _start_router(self, router_socket: socket.socket) -> None:
        open_files.raise_limit()  # for up to `max_connections` clients, and the connections to workers for each
        specs = [worker.spec for worker in self.workers]
        settings = self.deployment.router
        self._server = _Server(
            server_config(
                create_app(
                    settings,
                    routes(self.deployment, specs),
                    worker_facts(specs[0]),
                    drain=self._drain,
                    turned_away=self._turned_away,
                    listeners=[self._follow],
                ),
                settings.limits,
                unread_s=settings.request_timeout_s,
                turned_away=self._turned_away,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_DRAIN_S + _BREAK_OFF_S,
            )
        )
        self._router = asyncio.create_task(self._server.serve(sockets=[router_socket]), name="router")
        while not self._server.started:
            await asyncio.sleep(0.02)
            if self._router.done():
                self._router.result()

    def _follow(self, change: Change, worker: Worker) -> None:
        """What an operator does through the router's admin API to a worker that was started here."""
        for process in self.workers:
            if process.url == worker.url:
                process.let_go() if change == "left" else process.take_back()

    async def stop(self) -> None:
        """What leaving does, for when it should happen earlier. May be called again."""
        try:
            if self._server is not None and self._router is not None:
                self._drain.begin()
                self._server.should_exit = True  # before the workers, which can still answer the calls under way
                await asyncio.wait([self._router], timeout=_DRAIN_S)
                if calls := self._drain.break_off():
                    LOG.warning("broke off %d call(s)", calls)
                await asyncio.wait([self._router])
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            end_own(deployment_name(self.deployment))
            self._guard.stop()
            self._events.close()

    def _report(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)


def worker_facts(spec: WorkerSpec) -> WorkerFacts:
    """What the router has to know of a deployment's workers, by any one of them."""
    return WorkerFacts(
        block_size=spec.block_size,
        key=spec.worker_key,
        max_num_seqs=spec.max_num_seqs,
        kv_lease_s=spec.kv_lease_s,
        pull_timeout_s=spec.pull_timeout_s,
    )


def routes(deployment: Deployment, specs: list[WorkerSpec]) -> dict[str, ModelRoute]:
    """The router's view of the workers: for every module the pool of its base and the pool that hosts it."""
    on_device = Counter(spec.device for spec in specs if spec.role == "decode")

    def worker(spec: WorkerSpec) -> Worker:
        # Prompts need no turns: one alone fills a step.
        shares = spec.role == "decode" and on_device[spec.device] > 1
        return Worker(spec.name, spec.role, http_url(spec.host, spec.port), spec.device if shares else None)

    def pool(name: str, serving: str) -> Pool:
        """The workers that serve the base or module `serving`; names of models are distinct over both roles."""
        workers = [spec for spec in specs if serving in spec.served_names]
        return Pool(name, list(map(worker, workers)))

    names = [base.served_name for base in deployment.bases]
    prefill = {name: pool("prefill" if len(names) == 1 else f"prefill/{name}", name) for name in names}
    decode: dict[str, Pool] = {}
    for hosted in deployment.decode_pools():
        shared = pool(f"decode/{hosted.name}", hosted.modules[0].name)
        decode |= {module.name: shared for module in hosted.modules}
    instructions = {model.name: model.instructions for spec in specs for model in spec.models}
    identities = {name: spec.base_identity for spec in specs for name in spec.served_names}
    found: dict[str, ModelRoute] = {}
    for module in deployment.modules:
        base, name = deployment.base_of(module).served_name, module.name
        parser = deployment.parsers_of(module).tool_call_parser
        found[name] = ModelRoute(base, prefill[base], decode[name], instructions[name], parser, identities[base])
    return found


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: stopping is the supervisor's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def visibly(deployment: LocalDeployment, console: Console) -> AsyncIterator[None]:
    """Enters the deployment, with a live table of its workers for as long as they start."""
    with contextlib.ExitStack() as starting:
        starting.enter_context(show_start(deployment.workers, console))
        async with deployment:
            starting.close()
            yield


def run(deployment: Deployment) -> int:
    """Serves until SIGINT, SIGTERM or SIGHUP and returns the exit code; the CLI's `serve`.

    The first signal stops cleanly, SIGTERM once the calls in flight have ended; a second one kills the workers. For the
    code then see StopSignals; it is 1 when the deployment did not start or its router ended.

    Raises:
        UserError: the router's port is taken, or was when the workers had started, or `log_dir` cannot be written.
    """
    return asyncio.run(_run(deployment, lasting_console()))


async def _run(deployment: Deployment, console: Console) -> int:
    running = LocalDeployment(deployment, timing=DEFAULT_TIMING)

    with show_events(console), StopSignals(on_first=partial(say_stopping, console), kill=running.kill) as signals:
        try:
            async with visibly(running, console):
                try:
                    await running.wait()
                except asyncio.CancelledError:
                    if signals.received is signal.SIGTERM:
                        await running.drain()
                    raise
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            console.print("stopped")
            return signals.exit_code
        except StartupFailed as error:
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            return 1
    LOG.error("the router ended by itself")
    return 1
