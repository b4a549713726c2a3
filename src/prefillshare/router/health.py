"""Keeps the pools' picture of which workers are up, by asking each for its `/health` every second."""

import asyncio
import logging
from collections.abc import Sequence

import aiohttp

from prefillshare.router.pool import Pool, Worker

LOG = logging.getLogger("prefillshare.router")

INTERVAL_S = 1.0
TIMEOUT_S = 2.0
# A refused connection or a bad status is certain. Silence is not: a busy worker on a shared core misses two seconds.
SILENCES_ALLOWED = 2


class HealthMonitor:
    """Polls every worker of `pools`; `run` ends only by being cancelled."""

    def __init__(self, http: aiohttp.ClientSession, pools: Sequence[Pool], interval_s: float = INTERVAL_S) -> None:
        self._http = http
        self._pools = pools
        self._interval_s = interval_s
        self._silences: dict[Worker, int] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for pool in self._pools:
                for worker in pool.workers:
                    tasks.create_task(self._watch(pool, worker))

    async def check_all(self) -> None:
        await asyncio.gather(*(self.check(pool, worker) for pool in self._pools for worker in pool.workers))

    async def check(self, pool: Pool, worker: Worker) -> None:
        """Asks once and tells the pool."""
        try:
            async with self._http.get(worker.url + "/health", timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as answer:
                reason = "" if answer.status == 200 else f"its health check answered {answer.status}"
        except TimeoutError:
            silences = self._silences[worker] = self._silences.get(worker, 0) + 1
            if silences <= SILENCES_ALLOWED and pool.is_up(worker):
                return
            reason = "its health check does not answer"
        except (aiohttp.ClientError, OSError) as error:
            reason = f"cannot connect ({type(error).__name__})"
        else:
            self._silences.pop(worker, None)
        if not reason and pool.mark_up(worker):
            LOG.info("worker=%s up", worker.name)
        elif reason and pool.mark_down(worker, reason):
            LOG.warning("worker=%s down reason=%r", worker.name, reason)

    async def _watch(self, pool: Pool, worker: Worker) -> None:
        while True:
            await self.check(pool, worker)
            await asyncio.sleep(self._interval_s)
