"""Decode modules join and leave. A change that is refused has changed nothing."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from prefillshare.announcement import AnnouncedModel, Announcement
from prefillshare.router.admin.bodies import NewModule, Options
from prefillshare.router.admin.joining import Joining
from prefillshare.router.admin.waiting import busy, until
from prefillshare.router.admin.workers import FIRST_HEALTH_S, check_still_there, distinct_worker
from prefillshare.router.errors import RouterError, bad_request
from prefillshare.router.fleet import Base, Fleet
from prefillshare.router.metrics import Metrics
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute


class _Place(NamedTuple):
    """Where a module would be served."""

    base: Base
    pool: Pool | None  # None: in a new one
    workers: list[Worker]


class ModuleChanges:
    """`adding` is held while something joins, as in `WorkerChanges`."""

    def __init__(self, fleet: Fleet, joining: Joining, metrics: Metrics, adding: asyncio.Lock) -> None:
        self._fleet = fleet
        self._joining = joining
        self._metrics = metrics
        self._adding = adding

    async def add(self, new: NewModule) -> None:
        """Serves the module from a new pool, of workers that have been checked and one of which is up; or from a pool
        whose workers host it already.

        Raises:
            RouterError: the name is taken (409), there is no such base, or the pool and `workers` do not fit (400), a
                worker does not answer (502) or is not what it must be (409), or the pool goes meanwhile (404).
        """
        first = self._place_for(new)
        said = await self._joining.ask(*first.workers)
        async with self._adding:
            if first.pool is not None:
                check_still_there(self._fleet, first.pool)
            place = self._place_for(new)  # others may have joined or left meanwhile
            said |= await self._joining.ask(*(worker for worker in place.workers if worker not in said))
            module = await self._check(new, place.base, {worker: said[worker] for worker in place.workers})
            if place.pool is None:
                await self._in_new_pool(new, place, module)
            else:
                check_still_there(self._fleet, place.pool)
                self._fleet.add_module(new.name, _route(place.base, place.pool, module))
            self._metrics.begin_at_zero(new.name)

    async def remove(self, name: str, options: Options) -> list[Worker]:
        """The workers that have left with the module: those of its pool, unless another module is served there.

        New calls find no such model from the beginning on; those under way are waited for, up to `wait_s`.

        Raises:
            RouterError: there is no such module (404), or calls are under way without `force` (409).
        """
        if name not in self._fleet.routes:
            raise RouterError(404, f"No module is called {name[:128]!r}.", param="name", code="module_not_found")
        with self._fleet.withdrawn(name):
            # Somebody else may remove it meanwhile; then there is no route, which is a 404.
            done = await until(lambda: name not in self._fleet.routes or self._fleet.calls(name) == 0, options.wait_s)
            if not (done or options.force):
                raise busy(f"Module {name}", self._fleet.calls(name))
            pool = self._fleet.routes[name].decode
            workers = list(pool.workers)
            self._fleet.remove_module(name)
        return [] if pool in self._fleet.pools else workers

    def _place_for(self, new: NewModule) -> _Place:
        """Raises RouterError: the name, or that of a worker, is taken (409), or what is said does not fit (400)."""
        base = self._base_for(new)
        pool = next((pool for pool in self._fleet.pools if pool.name == new.pool_name), None)
        if pool is None:
            return _Place(base, None, self._new_workers(new))
        self._check_hosts(new, base, pool)
        return _Place(base, pool, list(pool.workers))

    def _base_for(self, new: NewModule) -> Base:
        if new.name in self._fleet.routes or new.name in self._fleet.bases:
            message = f"A model is called {new.name!r} already."
            raise RouterError(409, message, param="name", code="module_exists")
        if (base := self._fleet.bases.get(new.base)) is None:
            known = ", ".join(self._fleet.bases)
            message = f"`base`: there is no base {new.base!r}; there is {known}. Bases come with the deployment file."
            raise bad_request(message, "base", "invalid_field")
        return base

    def _new_workers(self, new: NewModule) -> list[Worker]:
        if not new.workers:
            message = f"`workers`: there is no pool {new.pool_name!r} yet; name at least one worker that decodes it."
            raise bad_request(message, "workers", "invalid_field")
        workers: list[Worker] = []
        for member in new.workers:
            workers.append(distinct_worker(self._fleet, member, "decode", workers))
        return workers

    async def _in_new_pool(self, new: NewModule, place: _Place, module: AnnouncedModel) -> None:
        pool = Pool(new.pool_name, place.workers)
        with self._fleet.withdrawn(new.name):  # known to health checks, and not to clients before they have passed
            self._fleet.add_pool(pool, place.base)
            self._fleet.add_module(new.name, _route(place.base, pool, module))
            try:
                if not await until(lambda: bool(pool.ready()), FIRST_HEALTH_S):
                    message = f"None of the workers is healthy ({pool.why_down() or 'they were removed'})."
                    raise RouterError(409, message, param="workers", code="worker_unhealthy")
            except BaseException:
                if new.name in self._fleet.routes:
                    self._fleet.remove_module(new.name)
                raise

    def _check_hosts(self, new: NewModule, base: Base, pool: Pool) -> None:
        if all(route.decode is not pool or route.base != base.name for route in self._fleet.routes.values()):
            message = f"`pool`: {pool.name!r} is no decode pool of the base {base.name!r}."
            raise bad_request(message, "pool", "invalid_field")
        if new.workers or not pool.workers:
            message = f"`workers`: the pool {pool.name!r} has {len(pool.workers)} worker(s); " + (
                "leave them out here, or name a new pool." if new.workers else "add one that hosts the module first."
            )
            raise bad_request(message, "workers", "invalid_field")

    async def _check(self, new: NewModule, base: Base, said: Mapping[Worker, Announcement]) -> AnnouncedModel:
        """The module as the workers have it; all must have the same."""
        found = await self._joining.check_for_module(said, base, new.name, new.instructions)
        if len(found) > 1:
            names = " and ".join(worker.name for worker in found.values())
            message = f"Workers have different modules called {new.name!r}: {names}."
            raise RouterError(409, message, param="workers", code="worker_mismatch")
        return next(iter(found))


def _route(base: Base, pool: Pool, module: AnnouncedModel) -> ModelRoute:
    return ModelRoute(
        base.name,
        base.prefill,
        pool,
        module.instructions,
        identity=base.identity,
        tool_call_parser=module.tool_call_parser,
    )
