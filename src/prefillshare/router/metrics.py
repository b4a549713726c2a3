"""Prometheus metrics of one router. Names start with `prefillshare_`; docs/observability.md lists them all.

Every label has a bounded set of values: served models, HTTP statuses, workers and pools (`worker_metrics`), and error
codes, of which no more than `MAX_CODES` are told apart.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from prefillshare import __version__
from prefillshare.router.accounting import Attribution
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.record import CallRecord
from prefillshare.router.worker_metrics import SECONDS, WorkerMetrics

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
LegName = Literal["prefill", "decode"]
MAX_CODES = 64  # workers have codes of their own; the rest are counted as "other"


class Metrics:
    """`model` is always a served model or "unknown", so that clients cannot create series.

    What has been counted for a model stays when it is no longer served.
    """

    def __init__(self, pools: Sequence[Pool], models: Iterable[str] = ()) -> None:
        """`pools` is looked at anew for every answer; models that are served later are begun by `begin_at_zero`."""
        self.registry = CollectorRegistry()  # others count in it, too
        self._codes: set[str] = set()
        self._count_calls()
        self._time_calls()
        self._workers = WorkerMetrics(self.registry, pools)
        for model in models:
            self.begin_at_zero(model)
        Info("prefillshare_build", "The router's version.", registry=self.registry).info({"version": __version__})
        ProcessCollector(registry=self.registry)

    def _count_calls(self) -> None:
        counter = partial(Counter, registry=self.registry)
        self._requests = counter(
            "prefillshare_requests",
            "Requests by outcome: an HTTP status (a stream that breaks counts as its error), 499 when the client left.",
            ["model", "status"],
        )
        self._errors = counter(
            "prefillshare_errors", "Requests that ended with an error, by its code.", ["model", "code"]
        )
        self._tokens = {
            kind: counter(f"prefillshare_{kind}_tokens", text, ["model"])
            for kind, text in (
                ("prompt", "Prompt tokens of calls whose prefill succeeded, and those that were computed once more."),
                ("computed", "Prompt tokens that the base had to compute, at each try."),
                ("reused", "Prompt tokens found in a prefill worker's cache."),
                ("reused_from_others", "Reused tokens that another model's call had paid for (lower bound)."),
                ("output", "Output tokens of complete answers."),
            )
        }
        self._paid = counter(
            "prefillshare_paid_tokens",
            "Prompt tokens that a call of `model` reused and a call of `payer` had computed (where that is known).",
            ["model", "payer"],
        )
        self._sent_bytes = counter("prefillshare_response_bytes", "Bytes of answers sent to clients.", ["model"])
        self._kv_lost = counter(
            "prefillshare_kv_lost",
            "Calls that were prefilled again, since their decode worker could not get, or keep, the base's KV.",
            ["model"],
        )
        self._retries = counter(
            "prefillshare_retries",
            "Calls tried again, by the leg that had failed and why: an error's code, or how the KV was lost.",
            ["leg", "reason"],
        )
        self._placements = counter(
            "prefillshare_placements",
            "Workers chosen, by the leg and the rule of `router.placement` that decided.",
            ["leg", "rule"],
        )
        self._in_flight = Gauge(
            "prefillshare_in_flight_requests",
            "Requests being served, those that wait for a worker or send their body included.",
            registry=self.registry,
        )

    def _time_calls(self) -> None:
        histogram = partial(Histogram, registry=self.registry)
        self._request_seconds = histogram(
            "prefillshare_request_duration_seconds",
            "From a request's arrival to its last byte; requests with status 200.",
            ["model"],
            buckets=SECONDS,
        )
        self._first_token_seconds = histogram(
            "prefillshare_time_to_first_token_seconds",
            "From a streamed request's arrival to its first event.",
            ["model"],
            buckets=SECONDS,
        )
        self._output_token_seconds = histogram(
            "prefillshare_time_per_output_token_seconds",
            "Of complete streams of one answer: mean time from one output token to the next, one observation a call.",
            ["model"],
            buckets=TOKEN_SECONDS,
        )

    def begin_at_zero(self, model: str) -> None:
        """Of a counter that appears with its first increase, Prometheus cannot see that increase."""
        for counter in (*self._tokens.values(), self._kv_lost, self._sent_bytes):
            counter.labels(model)
        self._requests.labels(model, "200")

    def started(self) -> None:
        self._in_flight.inc()

    def finished(self, call: CallRecord) -> None:
        """Of a call that was `started`."""
        self._in_flight.dec()
        self._requests.labels(call.model, str(call.status)).inc()
        self._sent_bytes.labels(call.model).inc(call.sent_bytes)
        if call.reason is not None:
            self._errors.labels(call.model, self._bounded(call.reason)).inc()
        if call.output_tokens:
            self._tokens["output"].labels(call.model).inc(call.output_tokens)
        if call.ok:
            self._request_seconds.labels(call.model).observe(call.seconds)
        if call.first_token_seconds is not None:
            self._first_token_seconds.labels(call.model).observe(call.first_token_seconds)
        if (seconds := call.seconds_per_output_token()) is not None:
            self._output_token_seconds.labels(call.model).observe(seconds)

    def prefilled(self, model: str, tokens: Attribution) -> None:
        self._tokens["prompt"].labels(model).inc(tokens.prompt)
        self._tokens["computed"].labels(model).inc(tokens.computed)
        self._tokens["reused"].labels(model).inc(tokens.reused)
        self._tokens["reused_from_others"].labels(model).inc(tokens.reused_from_others)
        for payer, paid in tokens.payers.items():
            self._paid.labels(model, payer).inc(paid)

    def prefilled_again(self, model: str, computed: int) -> None:
        """A later prefill of one call, whose prompt and reuse have been counted.

        What it computed is in `prompt` too, so that prompt = computed + reused.
        """
        self._tokens["prompt"].labels(model).inc(computed)
        self._tokens["computed"].labels(model).inc(computed)

    def leg(self, worker: Worker, seconds: float, code: str | None) -> None:
        """`code` is that of the error on which the leg failed, or None."""
        self._workers.leg(worker, seconds, code and self._bounded(code))

    def breaker_opened(self, worker: Worker) -> None:
        self._workers.breaker_opened(worker)

    def probed(self, worker: Worker, outcome: str) -> None:
        self._workers.probed(worker, outcome)

    def retried(self, leg: LegName, reason: str) -> None:
        self._retries.labels(leg, reason).inc()

    def placed(self, leg: LegName, rule: str) -> None:
        self._placements.labels(leg, rule).inc()

    def kv_lost(self, model: str) -> None:
        self._kv_lost.labels(model).inc()

    def render(self) -> bytes:
        """The exposition text for `/metrics`."""
        self._workers.follow()
        return generate_latest(self.registry)

    def _bounded(self, code: str) -> str:
        if code not in self._codes and len(self._codes) >= MAX_CODES:
            return "other"
        self._codes.add(code)
        return code
