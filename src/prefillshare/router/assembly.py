"""What the router is made of, and how its parts are put together."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from prefillshare.access import load_keys
from prefillshare.router.accounting import Ledger
from prefillshare.router.admin.api import Admin
from prefillshare.router.divergence import Divergence
from prefillshare.router.drain import Drain
from prefillshare.router.extension.extension import Extension
from prefillshare.router.extension.metrics import ExtensionMetrics
from prefillshare.router.fleet import Change, Fleet, Listener
from prefillshare.router.flow.capacity import Capacities, keep_asking
from prefillshare.router.flow.control import FlowControl
from prefillshare.router.flow.metrics import FlowMetrics
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.health.monitor import HealthMonitor
from prefillshare.router.metrics import Metrics
from prefillshare.router.observer import Observer
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Worker
from prefillshare.router.relay import Relay, open_http
from prefillshare.router.route import ModelRoute
from prefillshare.router.services import Services
from prefillshare.router.status.board import Board
from prefillshare.router.tenant_metrics import TenantMetrics
from prefillshare.router.tenants import SECRET_VARIABLE, make_keyring
from prefillshare.router.tracing import check_tracing, open_tracing
from prefillshare.router.turned_away import TurnedAway
from prefillshare.router.turns import Turns
from prefillshare.router.worker_facts import WorkerFacts
from prefillshare.router_config import RouterConfig


class Assembly:
    """The parts that are there before the router runs; `running` adds those that talk to workers.

    Arguments and errors are those of `create_app`.
    """

    def __init__(
        self,
        settings: RouterConfig,
        routes: Mapping[str, ModelRoute],
        workers: WorkerFacts,
        *,
        max_body_bytes: int,
        drain: Drain | None,
        turned_away: TurnedAway | None,
        listeners: Sequence[Listener],
    ) -> None:
        self.settings = settings
        self.fleet = Fleet(routes)
        self.fleet.listeners += listeners
        self.metrics = Metrics(self.fleet.pools, self.fleet.models)
        self.metrics.registry.register((turned_away or TurnedAway()).counter)
        self.draining = drain or Drain()
        keys = load_keys(settings.keys, settings.keys_file, os.environ)
        self.keyring = make_keyring(keys, os.environ.get(SECRET_VARIABLE) or secrets.token_hex(32)) if keys else None
        self.tenants = TenantMetrics(self.metrics.registry, sorted({key.config.name for key in keys}))
        self._placement = Placement(self.fleet.routes, settings.placement, block_size=workers.block_size)
        self._flow_metrics = FlowMetrics(self.metrics.registry, self.fleet.pools)
        self._extension_metrics = ExtensionMetrics(self.metrics.registry, self.fleet.models)
        self._divergence = Divergence(self.fleet.routes, self.metrics.registry, workers.block_size)
        self.board = Board(self.fleet.routes, pools=self.fleet.pools, notices=self._divergence.notices)
        self._workers = workers
        self._max_body_bytes = max_body_bytes
        check_tracing(settings.tracing, os.environ)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Services, Admin]]:
        """Everything that takes calls. Asks every worker for its health once before it does."""
        settings, fleet, workers = self.settings, self.fleet, self._workers
        async with open_http(settings, workers.key) as http:
            breaker = Breaker(settings.health.failures)
            breaker.opened.append(self.metrics.breaker_opened)
            monitor = HealthMonitor(http, fleet, settings.health, breaker, self.metrics.probed)
            await monitor.check_all()
            watching = asyncio.create_task(monitor.run())
            capacities = Capacities(http, fleet.pools, settings.flow, workers.max_num_seqs, self._placement.holds)
            flow = FlowControl(
                settings.flow,
                fleet.routes,
                self._placement,
                capacities,
                self._flow_metrics,
                kv_lease_s=workers.kv_lease_s,
                pull_timeout_s=workers.pull_timeout_s,
                taken=fleet.pulled,
            )
            self._flow_metrics.watch(flow.waiting, flow.kv, flow.bytes_per_token)
            self.board.waiting = flow.waiting
            await capacities.ask()
            asking = asyncio.create_task(keep_asking(capacities, flow.freed))
            tracing = open_tracing(settings.tracing, os.environ)
            observer = Observer(self.metrics, self.board, tracing)
            ledger = Ledger()
            fleet.listeners.append(partial(_forget_who_left, self._placement, ledger, breaker, capacities))
            fleet.removal_listeners.append(flow.removed)
            extension = Extension(
                http, settings.extension, fleet.routes, ledger, self._extension_metrics, workers.block_size
            )
            services = Services(
                settings,
                Relay(http, settings, self._placement, breaker, observer.leg, self._turns()),
                ledger,
                self.metrics,
                observer,
                fleet,
                self._max_body_bytes,
                self.tenants,
                self.draining,
                flow,
                extension,
                self._divergence,
            )
            yield services, Admin(fleet, http, self.metrics, workers.block_size, flow.kv)
            await extension.close()
            await asyncio.to_thread(tracing.close)
            for task in (watching, asking):
                task.cancel()
            await asyncio.gather(watching, asking, return_exceptions=True)

    def _turns(self) -> Turns:
        """Half a lease at most: the KV of a call that waits is on the prefill worker, for no longer than that lasts."""
        return Turns(min(self.settings.flow.turn_s, self._workers.kv_lease_s / 2), self._flow_metrics.had_turn)


def _forget_who_left(
    placement: Placement, ledger: Ledger, breaker: Breaker, capacities: Capacities, change: Change, worker: Worker
) -> None:
    if change == "left":
        breaker.succeeded(worker)
        placement.forget(worker)
        capacities.forget(worker)
        ledger.forget(worker.name)
