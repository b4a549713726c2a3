"""Prometheus metrics of the queue and the limits. Pools come and go, so gauges are read when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from prefillshare.router.flow.errors import Reason
from prefillshare.router.pool import Pool, Worker

_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

QueueSize = Callable[[Pool], tuple[int, int]]  # calls and tokens in the queue of a decode pool
Densities = Callable[[Pool], Mapping[str, float]]  # by tenant, bytes a token on a prefill pool
KV = Callable[[Worker], tuple[int, int | None]]  # tokens held on a worker, and how many may be, where that is known


class FlowMetrics:
    """`tenant` is a configured name, or empty where nobody needs a key."""

    def __init__(self, registry: CollectorRegistry, pools: Iterable[Pool]) -> None:
        """`pools` is looked at anew for every scrape."""
        self._waits = Histogram(
            "prefillshare_queue_wait_seconds",
            "How long calls that were let in have waited for room; also those that did not have to wait.",
            ["pool"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._turns = Histogram(
            "prefillshare_turn_wait_seconds",
            "How long calls have waited between their legs for other models' calls on the device of their decode "
            "worker; also those that did not have to wait. None where workers share no device.",
            ["pool"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._refusals = Counter(
            "prefillshare_queue_refusals",
            "Calls that were not let in, by reason.",
            ["pool", "reason", "tenant"],
            registry=registry,
        )
        self._overtakes = Counter(
            "prefillshare_queue_overtakes",
            "Calls that were let in before one that came earlier, since the prefill worker has most of their prompts.",
            ["pool"],
            registry=registry,
        )
        self._registry = registry
        self._pools = pools

    def watch(self, queue_size: QueueSize, kv: KV, densities: Densities) -> None:
        self._registry.register(_Gauges(self._pools, queue_size, kv, densities))

    def let_in(self, pool: Pool, seconds: float) -> None:
        self._waits.labels(pool.name).observe(seconds)

    def had_turn(self, pool: Pool, seconds: float) -> None:
        self._turns.labels(pool.name).observe(seconds)

    def overtook(self, pool: Pool) -> None:
        self._overtakes.labels(pool.name).inc()

    def refused(self, pool: Pool, reason: Reason, tenant: str) -> None:
        self._refusals.labels(pool.name, reason, tenant).inc()


class _Gauges(Collector):
    def __init__(self, pools: Iterable[Pool], queue_size: QueueSize, kv: KV, densities: Densities) -> None:
        self._pools = pools
        self._queue_size = queue_size
        self._kv = kv
        self._densities = densities

    def collect(self) -> Iterator[GaugeMetricFamily]:
        calls, tokens = (
            GaugeMetricFamily(f"prefillshare_queue_{kind}", f"{kind.title()} that wait for room.", labels=["pool"])
            for kind in ("calls", "tokens")
        )
        worker = partial(GaugeMetricFamily, labels=["worker", "role", "pool"])
        load = worker(
            "prefillshare_worker_in_flight_tokens",
            "Tokens in flight on the worker or reserved there: to compute (prefill), of prompts and answers (decode).",
        )
        limit = worker("prefillshare_worker_limit_tokens", "How many may be to compute on the (prefill) worker.")
        held = worker(
            "prefillshare_worker_kv_tokens",
            "Tokens of KV that calls in flight need on the worker, or reserved there, what prompts share counted once: "
            "of prompts until they are pulled (prefill), of prompts and answers (decode).",
        )
        most_held = worker(
            "prefillshare_worker_kv_limit_tokens",
            "How many may be: 0 until it has been asked, absent where the worker does not tell its size.",
        )
        density = GaugeMetricFamily(
            "prefillshare_prompt_bytes_per_token",
            "Bytes of text that are taken for a token where room is reserved, learned from the tenant's prompts.",
            labels=["pool", "tenant"],
        )
        for pool in self._pools:
            for tenant, bytes_per_token in self._densities(pool).items():
                density.add_metric([pool.name, tenant], bytes_per_token)
            if any(worker.role == "decode" for worker in pool.workers):
                for gauge, value in zip((calls, tokens), self._queue_size(pool), strict=True):
                    gauge.add_metric([pool.name], value)
            for member in pool.workers:
                labels = [member.name, member.role, pool.name]
                load.add_metric(labels, pool.load(member))
                if (most := pool.limit(member)) is not None:
                    limit.add_metric(labels, most)
                kv, kv_limit = self._kv(member)
                held.add_metric(labels, kv)
                if kv_limit is not None:
                    most_held.add_metric(labels, kv_limit)
        yield from (calls, tokens, load, limit, held, most_held, density)
