"""When calls begin, as the router's flow control has it (docs/flow.md), as far as they wait for prefill workers.

The router lets a call in when a prefill worker has little enough to compute, those first whose prompts are cached.
Rooms on decode workers are left out: calls wait for them inside the simulated workers. All callers are one key, and
models of one base take no turns: calls are looked at in the order of their arrival.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from prefillshare.router.flow.fair import LOOKED_AT
from prefillshare.router.placement.chunks import CHUNK_TOKENS
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool
from prefillshare.router_config import FlowConfig
from prefillshare.simulate.calls import Prompts, Run

Begin = Callable[[float, Run], None]  # at a time


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    since: float
    run: Run
    begin: Begin


class Gate:
    """In front of the prefill workers of a deployment, which have limits from here on."""

    def __init__(self, placement: Placement, prompts: Prompts, settings: FlowConfig) -> None:
        self._placement, self._prompts, self._settings = placement, prompts, settings
        self._queues: dict[Pool, dict[_Waiting, None]] = {}  # in the order of their arrival
        for pool in {route.prefill for route in placement.routes.values()}:
            for worker in pool.workers:
                pool.set_limit(worker, settings.prefill_tokens)

    def call(self, now: float, run: Run, begin: Begin) -> None:
        """`begin` is called when there is room, which may be at once."""
        pool = self._pool_of(run)
        self._queues.setdefault(pool, {})[_Waiting(now, run, begin)] = None
        self.freed(now, pool)

    def freed(self, now: float, pool: Pool) -> None:
        """A worker of the pool has less to compute."""
        queue = self._queues.get(pool)
        while queue:
            first = islice(queue, LOOKED_AT)
            waiting = next((each for each in first if self._goes_first(now, each)), next(iter(queue)))
            if not self._has_room(waiting.run):
                return
            del queue[waiting]
            waiting.begin(now, waiting.run)

    def _goes_first(self, now: float, waiting: _Waiting) -> bool:
        if now - waiting.since >= self._settings.cached_first_s:
            return True
        run = waiting.run
        return self._placement.knows_most(
            self._pool_of(run), self._prompts.key(run), self._prompts.chain(run, CHUNK_TOKENS)
        )

    def _has_room(self, run: Run) -> bool:
        pool = self._pool_of(run)
        compute = self._placement.to_compute(pool, self._prompts.chain(run, CHUNK_TOKENS))
        return any(pool.has_room(worker, tokens) for worker, tokens in compute.items())

    def _pool_of(self, run: Run) -> Pool:
        return self._placement.routes[run.call.model].prefill
