"""What a call may still try after a worker has failed it. Only while nothing of its answer has been sent."""

import asyncio
import random
from collections.abc import Callable, Collection

from prefillshare.router.errors import PREFILLS_FAULT, RouterError
from prefillshare.router.placement.placement import Placed
from prefillshare.router.pool import Worker
from prefillshare.router_config import RetryConfig


class Attempts:
    """Those of one call, over both of its legs together."""

    def __init__(self, settings: RetryConfig) -> None:
        self._settings = settings
        self.failed_workers: set[Worker] = set()
        self.retries = 0
        self.last_failed = "-"  # the worker's name

    def choose(self, place: Callable[[Collection[Worker]], Placed | None]) -> Placed | None:
        """A worker that has not failed this call; when all have, one of these, if it is up again."""
        return place(self.failed_workers) or (place(()) if self.failed_workers else None)

    def failed(self, error: RouterError, worker: Worker, prefilled_by: Worker | None = None) -> None:
        """`worker` had the leg that ended with the error; in a decode leg, `prefilled_by` holds the KV."""
        self.last_failed = worker.name
        if error.retry is None:
            return
        self.failed_workers.add(worker)
        if prefilled_by is not None and error.retry in PREFILLS_FAULT:
            self.failed_workers.add(prefilled_by)

    def again(self, error: RouterError) -> bool:
        """Whether the call may try again after this error; if so, that is one retry less."""
        if error.retry is None or self.retries >= self._settings.max_retries:
            return False
        self.retries += 1
        return True

    async def pause(self) -> None:
        """Before a retry. Of random length, since the calls of a worker that died all come at once ("full jitter")."""
        longest = self._settings.first_pause_s * 2 ** (self.retries - 1)
        await asyncio.sleep(random.uniform(0, min(longest, self._settings.longest_pause_s)))
