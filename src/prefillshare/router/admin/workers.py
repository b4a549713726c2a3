"""Workers join, drain and leave. A change that is refused has changed nothing."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from prefillshare.router.admin.bodies import Member, NewWorker, Options
from prefillshare.router.admin.joining import Joining
from prefillshare.router.admin.waiting import busy, until
from prefillshare.router.errors import RouterError
from prefillshare.router.fleet import Fleet
from prefillshare.router.pool import Pool, Worker

FIRST_HEALTH_S = 5.0  # how long a worker that joins is given for its first health check; they come every second


class WorkerChanges:
    """`adding` is held while something joins, since that is checked against all that are there.

    What joins is asked what it is before that, which can take a minute: nobody else waits for it.
    """

    def __init__(self, fleet: Fleet, joining: Joining, adding: asyncio.Lock) -> None:
        self._fleet = fleet
        self._joining = joining
        self._adding = adding

    def find(self, name: str) -> tuple[Pool, Worker]:
        """Raises RouterError (404)."""
        for pool, worker in self._fleet.workers():
            if worker.name == name:
                return pool, worker
        raise _not_found(f"No worker is called {name[:128]!r}.")

    async def add(self, new: NewWorker) -> tuple[Pool, Worker]:
        """The worker gets calls from its first healthy answer on, which this waits for a little.

        Raises:
            RouterError: there is no such pool (404), the name or address is taken (409), the worker does not answer
                (502), or it is not what the pool needs (409).
        """
        said = await self._joining.ask(self._place_for(new)[1])
        async with self._adding:
            pool, worker = self._place_for(new)  # others may have joined or left meanwhile
            await self._joining.check_for_pool(said, pool)
            check_still_there(self._fleet, pool)
            self._fleet.add_worker(pool, worker)
        await until(lambda: pool.is_up(worker), FIRST_HEALTH_S)
        return pool, worker

    def _place_for(self, new: NewWorker) -> tuple[Pool, Worker]:
        """Raises RouterError: there is no such pool (404), or the name or address is taken (409)."""
        pool = next((pool for pool in self._fleet.pools if pool.name == new.pool), None)
        if pool is None:
            known = ", ".join(pool.name for pool in self._fleet.pools)
            message = f"There is no pool {new.pool!r}; there is {known}."
            raise RouterError(404, message, param="pool", code="pool_not_found")
        role: Literal["prefill", "decode"] = "prefill" if pool is self._fleet.base_of(pool).prefill else "decode"
        return pool, distinct_worker(self._fleet, new, role)

    async def drain(self, name: str, options: Options) -> tuple[Pool, Worker]:
        """Gives the worker no more calls, and waits up to `wait_s` until nothing is under way on it."""
        pool, worker = self.find(name)
        self._check_not_the_last(pool, worker, options)
        pool.drain(worker)
        await until(lambda: self._fleet.is_idle(pool, worker), options.wait_s)
        return pool, worker

    def resume(self, name: str) -> tuple[Pool, Worker]:
        pool, worker = self.find(name)
        pool.resume(worker)
        return pool, worker

    async def remove(self, name: str, options: Options) -> None:
        """Waits, without giving it new calls, until nothing is under way on it; `force` then removes it all the same.

        Raises:
            RouterError: 409, calls are under way, or it is the last one that is ready; 404, somebody else has removed
                it, also if another worker has its name by now.
        """
        pool, worker = self.find(name)
        self._check_not_the_last(pool, worker, options)
        with pool.leaving(worker):
            done = await until(lambda: not _is_here(pool, worker) or self._fleet.is_idle(pool, worker), options.wait_s)
            if not (done or options.force):
                raise busy(f"Worker {name}", pool.in_flight(worker) + self._fleet.handoffs(worker))
        # Nothing happens between here and the end, so it is given no call.
        if self.find(name)[1] is not worker:
            raise _not_found(f"The worker {name[:128]!r} was removed meanwhile; another one has its name.")
        self._check_not_the_last(pool, worker, options)  # the others may have gone down meanwhile
        self._fleet.remove_worker(pool, worker)

    def _check_not_the_last(self, pool: Pool, worker: Worker, options: Options) -> None:
        if not options.force and pool.ready() == [worker]:
            message = (
                f"Worker {worker.name} is the last one that is ready in the pool {pool.name!r}: without it the pool's "
                "models answer 503. Add another one first, or do it all the same with ?force=true."
            )
            raise RouterError(409, message, code="last_worker")


def _is_here(pool: Pool, worker: Worker) -> bool:
    """The worker itself, not another of its name."""
    return any(each is worker for each in pool.workers)


def _not_found(message: str) -> RouterError:
    return RouterError(404, message, param="name", code="worker_not_found")


def check_still_there(fleet: Fleet, pool: Pool) -> None:
    """Raises RouterError (404) if the pool has gone with its last module, while what joins it was checked."""
    if pool not in fleet.pools:
        raise RouterError(404, f"There is no pool {pool.name!r} any more.", param="pool", code="pool_not_found")


def distinct_worker(
    fleet: Fleet, new: Member, role: Literal["prefill", "decode"], others: Sequence[Worker] = ()
) -> Worker:
    """Raises RouterError (409) if a worker of the fleet, or one of `others`, has its name or its address."""
    for worker in [*(worker for _, worker in fleet.workers()), *others]:
        if worker.name == new.name:
            message = f"A worker is called {new.name!r} already, at {worker.url}."
            raise RouterError(409, message, param="name", code="worker_exists")
        if worker.url == new.url:
            message = f"The worker {worker.name!r} is at {new.url} already."
            raise RouterError(409, message, param="url", code="worker_exists")
    return Worker(new.name, role, new.url)
