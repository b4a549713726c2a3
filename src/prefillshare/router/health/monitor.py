"""Keeps the pools' picture of which workers are up.

Three questions, from cheap to dear: does it answer `/health` (every second), has it sent anything of the answers that
calls wait for, and does it make a token when asked for one. The last is asked of workers that are idle or under
suspicion, never of busy ones: these show by their own work, or by their metrics, that they live.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp

from prefillshare.router.fleet import Fleet
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.health.probe import Outcome, Prober
from prefillshare.router.health.watcher import Watcher
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.privacy import failure_text
from prefillshare.router_config import HealthConfig

LOG = logging.getLogger("prefillshare.router")


class HealthMonitor:
    """Watches every worker of the fleet, also such as join later; `run` ends only by being cancelled."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        fleet: Fleet,
        settings: HealthConfig,
        breaker: Breaker,
        probed: Callable[[Worker, Outcome], None] = lambda worker, outcome: None,
    ) -> None:
        """`probed` is told what came of each request for a token."""
        self._http = http
        self._fleet = fleet
        self._settings = settings
        self._breaker = breaker
        self._prober = Prober(http, fleet, settings.token_timeout_s)
        self._probed = probed
        self._suspected: dict[str, asyncio.Event] = {}  # by the name of the worker
        breaker.opened.append(self._suspect)

    async def run(self) -> None:
        watching: dict[tuple[Pool, Worker], asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                there = set(self._fleet.workers())
                for gone in watching.keys() - there:
                    watching.pop(gone).cancel()
                    self._suspected.pop(gone[1].name, None)
                for new in there - watching.keys():
                    watching[new] = tasks.create_task(self._watch(*new))
                await asyncio.sleep(self._settings.poll_every_s)

    async def check_all(self) -> None:
        """Asks every worker for its `/health`, once."""
        await asyncio.gather(*(self._watcher(pool, worker).poll() for pool, worker in self._fleet.workers()))

    def _suspect(self, worker: Worker) -> None:
        """Has it asked for a token at once: calls may have failed by what was in them."""
        if event := self._suspected.get(worker.name):
            event.set()

    async def _watch(self, pool: Pool, worker: Worker) -> None:
        watcher = self._watcher(pool, worker)
        suspected = self._suspected[worker.name] = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(watcher.poll, asyncio.Event()))
            tasks.create_task(self._repeat(watcher.want_tokens, suspected))

    async def _repeat(self, step: Callable[[], Awaitable[None]], at_once: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await step()
            except Exception as error:  # one worker's must not end the watch over all
                LOG.error("the health check failed in the router: %s", failure_text(error, with_messages=False))
            with suppress(TimeoutError):
                # From start to start: a worker that does not answer is asked again as soon as that is clear.
                async with asyncio.timeout_at(started + self._settings.poll_every_s):
                    await at_once.wait()
            at_once.clear()

    def _watcher(self, pool: Pool, worker: Worker) -> Watcher:
        return Watcher(pool, worker, self._http, self._settings, self._prober, self._breaker, self._probed)
