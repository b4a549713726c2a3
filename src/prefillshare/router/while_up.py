"""Ends a call when the worker that it waits for is found down, though its connection be open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefillshare.router.errors import worker_lost
from prefillshare.router.pool import OnWorker, Pool, Worker


@asynccontextmanager
async def while_up(pool: Pool, worker: Worker) -> AsyncIterator[OnWorker]:
    """Ends what runs in it when the pool cuts the worker's calls.

    Raises:
        RouterError: it was ended (502).
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as scope:
            with pool.waiting(worker, lambda: scope.reschedule(loop.time())) as on_worker:
                yield on_worker
    except TimeoutError:
        if not scope.expired():
            raise
        raise worker_lost(worker.name, pool.reason(worker)) from None
