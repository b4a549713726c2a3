"""Prometheus metrics of one router. Names start with `prefillshare_`."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prefillshare.router.accounting import Attribution
from prefillshare.router.pool import Pool

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """`model` is always a served model or "unknown", so that clients cannot create series."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._registry = self.registry = CollectorRegistry()  # others count in it, too
        self._requests = Counter(
            "prefillshare_requests",
            "Calls by outcome: an HTTP status (a stream that breaks counts as its error), 499 when the client left.",
            ["model", "status"],
            registry=self._registry,
        )
        self._tokens = {
            kind: Counter(f"prefillshare_{kind}_tokens", text, ["model"], registry=self._registry)
            for kind, text in (
                ("prompt", "Prompt tokens of calls whose prefill succeeded."),
                ("computed", "Prompt tokens that the base had to compute."),
                ("reused", "Prompt tokens found in a prefill worker's cache."),
                ("reused_from_others", "Reused tokens that another model's call had paid for (lower bound)."),
            )
        }
        self._kv_lost = Counter(
            "prefillshare_kv_lost",
            "Calls that were prefilled again, since their decode worker could not get, or keep, the base's KV.",
            ["model"],
            registry=self._registry,
        )
        self._placements = Counter(
            "prefillshare_placements",
            "Workers chosen, by the leg and the rule of `router.placement` that decided.",
            ["leg", "rule"],
            registry=self._registry,
        )
        self._prefill_seconds = Histogram(
            "prefillshare_prefill_seconds",
            "Duration of the prefill leg.",
            ["worker"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._first_token_seconds = Histogram(
            "prefillshare_time_to_first_token_seconds",
            "From a streamed call's arrival to its first event.",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        healthy = Gauge("prefillshare_workers_healthy", "Workers that are up.", ["pool"], registry=self._registry)
        for pool in pools:
            healthy.labels(pool.name).set_function(partial(_count_up, pool))

    def finished(self, model: str, status: int) -> None:
        self._requests.labels(model, str(status)).inc()

    def prefilled(self, model: str, worker: str, seconds: float, tokens: Attribution) -> None:
        self._prefill_seconds.labels(worker).observe(seconds)
        self._tokens["prompt"].labels(model).inc(tokens.prompt)
        self._tokens["computed"].labels(model).inc(tokens.computed)
        self._tokens["reused"].labels(model).inc(tokens.reused)
        self._tokens["reused_from_others"].labels(model).inc(tokens.reused_from_others)

    def placed(self, leg: Literal["prefill", "decode"], rule: str) -> None:
        self._placements.labels(leg, rule).inc()

    def kv_lost(self, model: str) -> None:
        self._kv_lost.labels(model).inc()

    def first_token(self, model: str, seconds: float) -> None:
        self._first_token_seconds.labels(model).observe(seconds)

    def render(self) -> bytes:
        """The exposition text for `/metrics`."""
        return generate_latest(self._registry)


def _count_up(pool: Pool) -> float:
    return len(pool.up())
