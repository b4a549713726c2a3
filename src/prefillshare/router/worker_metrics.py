"""Metrics with a worker in their labels. A worker's series come and go with it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from prefillshare.router.pool import Pool, Worker

MetricT = TypeVar("MetricT", bound=MetricWrapperBase)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class WorkerMetrics:
    """Of the workers in `pools`, a sequence that may change at any time."""

    def __init__(self, registry: CollectorRegistry, pools: Sequence[Pool]) -> None:
        self._pools = pools
        self._series: dict[str, set[tuple[MetricWrapperBase, tuple[str, ...]]]] = {}  # by worker; with their labels
        self._leg_seconds = Histogram(
            "prefillshare_leg_duration_seconds",
            "Duration of legs that succeeded; a streamed decode leg lasts as long as its stream.",
            ["leg", "worker"],
            buckets=SECONDS,
            registry=registry,
        )
        counter = partial(Counter, registry=registry)
        self._leg_failures = counter(
            "prefillshare_leg_failures",
            "Legs that failed on a worker, by the error's code; one that goes on to another worker is counted, too.",
            ["leg", "worker", "code"],
        )
        self._breakers = counter(
            "prefillshare_breaker_openings",
            "How often a worker was taken out of service because calls on it failed one after another.",
            ["worker"],
        )
        self._probes = counter(
            "prefillshare_probes",
            "Requests for one token, made to see whether the worker makes any; by what came of them.",
            ["worker", "outcome"],
        )
        registry.register(_Gauges(pools))
        self.follow()

    def leg(self, worker: Worker, seconds: float, code: str | None) -> None:
        """`code` is that of the error on which the leg failed, or None."""
        if code is None:
            self._of(worker, self._leg_seconds, worker.role, worker.name).observe(seconds)
        else:
            self._of(worker, self._leg_failures, worker.role, worker.name, code).inc()

    def breaker_opened(self, worker: Worker) -> None:
        self._of(worker, self._breakers, worker.name).inc()

    def probed(self, worker: Worker, outcome: str) -> None:
        self._of(worker, self._probes, worker.name, outcome).inc()

    def follow(self) -> None:
        """Drops the series of workers that have left, and begins those of workers that have joined.

        Before every scrape, not when a worker leaves: its last calls may end after that and would bring them back.
        """
        present = {worker.name: worker for pool in self._pools for worker in pool.workers}
        for name in self._series.keys() - present.keys():
            for metric, labels in self._series.pop(name):
                metric.remove(*labels)
        for name in present.keys() - self._series.keys():
            self._of(present[name], self._leg_seconds, present[name].role, name)
            self._of(present[name], self._breakers, name)

    def _of(self, worker: Worker, metric: MetricT, *labels: str) -> MetricT:
        self._series.setdefault(worker.name, set()).add((metric, labels))
        return metric.labels(*labels)


class _Gauges(Collector):
    """What the pools say when they are asked."""

    _BY_WORKER: Sequence[tuple[str, str, Callable[[Pool, Worker], float]]] = (
        ("worker_up", "1 when the worker is up, else 0.", Pool.is_up),
        (
            "worker_breaker_open",
            "1 while the worker is out of service because calls on it failed one after another.",
            lambda pool, worker: "calls" in pool.faults(worker),
        ),
        ("worker_draining", "1 while the worker is given no new calls, else 0.", Pool.is_draining),
        ("worker_in_flight_calls", "Calls that the router has in flight on the worker.", Pool.in_flight),
        (
            "worker_last_change_timestamp_seconds",
            "When the worker last went up or down, in seconds since 1970.",
            Pool.since,
        ),
    )

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily("prefillshare_workers_healthy", "Workers that are up.", labels=["pool"])
        for pool in self._pools:
            healthy.add_metric([pool.name], len(pool.up()))
        yield healthy
        for name, text, value in self._BY_WORKER:
            gauge = GaugeMetricFamily(f"prefillshare_{name}", text, labels=["worker", "role", "pool"])
            for pool in self._pools:
                for worker in pool.workers:
                    gauge.add_metric([worker.name, worker.role, pool.name], float(value(pool, worker)))
            yield gauge
