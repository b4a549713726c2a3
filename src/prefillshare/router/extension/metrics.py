"""Prometheus metrics of eager extension."""

from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter

# `no_gain`: the answer fills no block. `unknown`: it cannot be known how the conversation goes on. `busy`: no worker
# was free in time. `cancelled`: a call came first.
Outcome = Literal["done", "cancelled", "failed", "busy", "no_gain", "unknown"]


class ExtensionMetrics:
    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        self._extensions = Counter(
            "prefillshare_extensions",
            "Turns that ended well while extension was not off, by what came of their extension.",
            ["model", "outcome"],
            registry=registry,
        )
        self._computed = Counter(
            "prefillshare_extension_computed_tokens",
            "Tokens that the base computed ahead, after turns of `model`.",
            ["model"],
            registry=registry,
        )
        self._hits = Counter(
            "prefillshare_extension_hit_tokens",
            "Prompt tokens that calls of `model` found in a cache because they had been computed ahead.",
            ["model"],
            registry=registry,
        )
        self._wasted = Counter(
            "prefillshare_extension_wasted_tokens",
            "Tokens computed ahead, after turns of `model`, that no prompt has used.",
            ["model"],
            registry=registry,
        )
        for model in models:
            for outcome in get_args(Outcome):
                self._extensions.labels(model, outcome)
            for counter in (self._computed, self._hits, self._wasted):
                counter.labels(model)

    def ended(self, model: str, outcome: Outcome) -> None:
        self._extensions.labels(model, outcome).inc()

    def computed(self, model: str, tokens: int) -> None:
        self._computed.labels(model).inc(tokens)

    def hit(self, model: str, tokens: int) -> None:
        self._hits.labels(model).inc(tokens)

    def wasted(self, model: str, tokens: int) -> None:
        self._wasted.labels(model).inc(tokens)
