"""What the router serves at this moment: modules, their pools, the workers in them. All changes to it are made here.

Everybody else reads it anew each time: placement, metrics, health checks and the status page share its `routes` and
`pools` and keep no lists of their own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from prefillshare.router.errors import model_removed
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute, pools_of

Change = Literal["joined", "left"]
Listener = Callable[[Change, Worker], None]


@dataclass(frozen=True, slots=True)
class Base:
    """A base and the pool that prefills for its modules; it stays when its last module goes."""

    name: str  # under which the prefill workers serve it
    prefill: Pool
    identity: str


class Routes(dict[str, ModelRoute]):
    """By module. Asking for one that is gone ends the call that asks, as it would a call that comes later."""

    def __missing__(self, model: str) -> ModelRoute:
        raise model_removed(model)


class Fleet:
    """Names of pools, of workers and of models are each distinct. Bases are those that the router started with."""

    def __init__(self, routes: Mapping[str, ModelRoute]) -> None:
        """
        Raises:
            ValueError: two pools have one name, or workers of one name.
        """
        self.routes = Routes(routes)
        self.pools: list[Pool] = pools_of(routes.values())
        self.bases = {route.base: Base(route.base, route.prefill, route.identity) for route in routes.values()}
        self._base_of = {
            pool: self.bases[route.base] for route in routes.values() for pool in (route.prefill, route.decode)
        }
        self.listeners: list[Listener] = []
        self.removal_listeners: list[Callable[[str], None]] = []  # are told of each module that has gone
        self._withdrawn: Counter[str] = Counter()  # by model, how many want it to be offered to no new call
        self._calls: Counter[str] = Counter()  # by model, from admission to the end of the answer
        self._handoffs: dict[str, Worker] = {}  # by call: the prefill worker that still holds its KV

    @property
    def models(self) -> tuple[str, ...]:
        """The names that new calls may ask for."""
        return tuple(model for model in self.routes if not self._withdrawn[model])

    def modules_of(self, pool: Pool) -> dict[str, ModelRoute]:
        """Those that a worker of the pool serves: of a prefill pool, those of its base."""
        return {name: route for name, route in self.routes.items() if pool in (route.prefill, route.decode)}

    def base_of(self, pool: Pool) -> Base:
        """The base whose KV the pool's workers write, or decode on."""
        return self._base_of[pool]

    def workers(self) -> Iterator[tuple[Pool, Worker]]:
        return ((pool, worker) for pool in self.pools for worker in pool.workers)

    # Calls, as far as a worker or a module that is to go must wait for them.

    def serving(self, model: str) -> AbstractContextManager[None]:
        """Counts a call of the model for as long as the block runs."""
        return _counted(self._calls, model)

    def calls(self, model: str) -> int:
        return self._calls[model]

    def handed_over(self, call_id: str, worker: Worker) -> None:
        """Leg 1 of the call is done: until `pulled`, a decode worker may read its KV from `worker`."""
        self._handoffs[call_id] = worker

    def pulled(self, call_id: str) -> None:
        """The call needs its prefill worker no longer: its answer has begun, or it has ended. May be told twice."""
        self._handoffs.pop(call_id, None)

    def handoffs(self, worker: Worker) -> int:
        """Calls whose KV a decode worker may still read from `worker`. Their lease bounds how long."""
        return sum(holder == worker for holder in self._handoffs.values())

    def is_idle(self, pool: Pool, worker: Worker) -> bool:
        """Whether nothing would be lost if the worker stopped now. What its cache holds is not counted."""
        return pool.in_flight(worker) == 0 and self.handoffs(worker) == 0

    # Changes. Each is whole when it returns; none waits for calls.

    def add_worker(self, pool: Pool, worker: Worker) -> None:
        pool.add(worker)
        self._tell("joined", worker)

    def remove_worker(self, pool: Pool, worker: Worker) -> None:
        """Calls in flight on it go on; no other gets there."""
        pool.remove(worker)
        self._tell("left", worker)

    def add_pool(self, pool: Pool, base: Base) -> None:
        """A decode pool, for modules of the base."""
        self._base_of[pool] = base
        self.pools.append(pool)
        for worker in pool.workers:
            self._tell("joined", worker)

    def remove_pool(self, pool: Pool) -> None:
        """With its workers."""
        for worker in pool.workers:
            self.remove_worker(pool, worker)
        self.pools.remove(pool)
        del self._base_of[pool]

    def add_module(self, name: str, route: ModelRoute) -> None:
        """Its pools must be there."""
        self.routes[name] = route

    def remove_module(self, name: str) -> None:
        """With its decode pool, if no other module is served there. Its base's prefill pool stays."""
        pool = self.routes.pop(name).decode
        if not self.modules_of(pool):
            self.remove_pool(pool)
        for listener in self.removal_listeners:
            listener(name)

    def withdrawn(self, name: str) -> AbstractContextManager[None]:
        """For as long as the block runs, whoever else withdraws it too, new calls of the module find no such model;
        those that were admitted go on."""
        return _counted(self._withdrawn, name)

    def _tell(self, change: Change, worker: Worker) -> None:
        for listener in self.listeners:
            listener(change, worker)


@contextmanager
def _counted(counts: Counter[str], name: str) -> Iterator[None]:
    counts[name] += 1
    try:
        yield
    finally:
        counts[name] -= 1
