"""OpenTelemetry spans: one for each call, with a child for each leg. Off unless an endpoint is configured.

OpenTelemetry is the extra `tracing` and imported only when it is on. Attributes have the names of the semantic
conventions for generative AI where these have one. No span holds anything of a prompt or an answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefillshare import __version__
from prefillshare.errors import UserError
from prefillshare.extras import missing
from prefillshare.router.pool import Worker
from prefillshare.router.record import CallRecord
from prefillshare.router_config import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

LOG = logging.getLogger("prefillshare.router")

# By itself OpenTelemetry goes on for 30 s when a router stops whose collector does not answer.
_CLOSE_S = 3.0

# The standard variables; the exporter reads them itself.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OPERATIONS = {"chat/completions": "chat", "completions": "text_completion"}
_PROVIDER = "prefillshare"

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class LegTrace:
    """`headers` go to the leg's worker; they carry the leg's span on."""

    headers: dict[str, str] = field(default_factory=dict)

    def ended(self, code: str | None) -> None:
        """`code` is that of the error on which the leg failed, or None."""


class CallTrace:
    """A call's span; this one is of a router that makes no spans."""

    @contextmanager
    def leg(self, worker: Worker, model: str) -> Iterator[LegTrace]:
        yield LegTrace()

    def end(self, call: CallRecord) -> None:
        """Must be called once, when the call has ended."""


class Tracing:
    """Makes no spans."""

    def start(self, endpoint: str, request_id: str, headers: Headers) -> CallTrace:
        """The span of a call that has just arrived, a child of the client's own if `headers` has a traceparent."""
        return CallTrace()

    def close(self) -> None:
        """Sends what has not been sent yet, for up to some seconds."""


def is_asked_for(settings: TracingConfig, environment: Mapping[str, str]) -> bool:
    """Whether there is somewhere to send spans, in the deployment file or in OpenTelemetry's own variables."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and bool(settings.otlp_endpoint or any(environment.get(name) for name in _ENDPOINTS))


def check_tracing(settings: TracingConfig, environment: Mapping[str, str]) -> None:
    """Raises UserError when spans are asked for and `open_tracing` would raise; nothing is sent."""
    if is_asked_for(settings, environment):
        _provider(settings, environment).shutdown()


def open_tracing(settings: TracingConfig, environment: Mapping[str, str]) -> Tracing:
    """The router's tracing, sending to the endpoint that is configured, or to nowhere. `environment` is the process's.

    Raises:
        UserError: an endpoint is configured, and OpenTelemetry is not installed or does not take one of its variables.
    """
    if not is_asked_for(settings, environment):
        return Tracing()
    return OpenTelemetry(_provider(settings, environment))


def _provider(settings: TracingConfig, environment: Mapping[str, str]) -> TracerProvider:
    """Raises UserError as `open_tracing`."""
    asked_by = next((name for name in _ENDPOINTS if environment.get(name)), "")
    asked_by = "router.tracing.otlp_endpoint" if settings.otlp_endpoint else asked_by
    wanted = ("opentelemetry.sdk.trace", f"opentelemetry.exporter.otlp.proto.{_protocol(environment)}")
    for module in wanted:
        if why := missing(module, "tracing"):
            raise UserError(f"{asked_by} asks for traces: {why}, or leave the endpoint out")
    try:
        return _make_provider(settings, environment)
    except Exception as error:  # its own kinds of errors among them
        names = ", ".join(sorted(name for name in environment if name.startswith("OTEL_")))
        raise UserError(
            f"{asked_by} asks for traces: OpenTelemetry refuses one of the variables {names or 'OTEL_...'}: {error}"
        ) from None


def _make_provider(settings: TracingConfig, environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    exporter: SpanExporter
    if _protocol(environment) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        exporter = GrpcExporter(endpoint=settings.otlp_endpoint)
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        exporter = HttpExporter(endpoint=settings.otlp_endpoint)
    resource = Resource.create({"service.name": settings.service_name, "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class OpenTelemetry(Tracing):
    """Makes spans with `provider`, which it shuts down."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("prefillshare.router", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, endpoint: str, request_id: str, headers: Headers) -> CallTrace:
        from opentelemetry.trace import SpanKind, set_span_in_context

        # Of the client's trace only the position in it. Its tracestate, which is free text, is not passed on.
        found = [value.decode("latin-1") for name, value in headers if name == b"traceparent"]
        parent = self._propagator.extract({"traceparent": found[0]}) if len(found) == 1 else None
        operation = _OPERATIONS.get(endpoint, endpoint)
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "http.request.method": "POST",
            "http.route": f"/v1/{endpoint}",
            "prefillshare.request_id": request_id,
        }
        span = self._tracer.start_span(operation, parent, SpanKind.SERVER, attributes)
        return _OpenTelemetryCall(self, span, set_span_in_context(span))

    def start_leg(self, worker: Worker, model: str, parent: Context) -> Span:
        from opentelemetry.trace import SpanKind

        address = urlsplit(worker.url)
        attributes: dict[str, str | int] = {
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": model,
            "server.address": address.hostname or "",
            "server.port": address.port or 80,
            "prefillshare.leg": worker.role,
            "prefillshare.worker": worker.name,
        }
        return self._tracer.start_span(worker.role, parent, SpanKind.CLIENT, attributes)

    def headers_of(self, span: Span) -> dict[str, str]:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return {name: value for name, value in carrier.items() if name == "traceparent"}

    def close(self) -> None:
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_CLOSE_S)
        if sending.is_alive():
            LOG.warning("the last spans were not sent within %g s; does the collector run?", _CLOSE_S)


class _OpenTelemetryCall(CallTrace):
    def __init__(self, tracing: OpenTelemetry, span: Span, context: Context) -> None:
        self._tracing = tracing
        self._span = span
        self._context = context

    @contextmanager
    def leg(self, worker: Worker, model: str) -> Iterator[LegTrace]:
        span = self._tracing.start_leg(worker, model, self._context)
        try:
            yield _OpenTelemetryLeg(self._tracing.headers_of(span), span)
        finally:
            span.end()

    def end(self, call: CallRecord) -> None:
        span = self._span
        span.update_name(f"{_OPERATIONS.get(call.endpoint, call.endpoint)} {call.model}")
        span.set_attributes(_attributes(call))
        if call.status >= 500:  # by the conventions a server's span has not failed when the client has
            _mark_failed(span, call.reason or str(call.status))
        span.end()


@dataclass(slots=True)
class _OpenTelemetryLeg(LegTrace):
    headers: dict[str, str]
    span: Span

    def ended(self, code: str | None) -> None:
        if code is not None:
            _mark_failed(self.span, code)


def _attributes(call: CallRecord) -> dict[str, Any]:
    tokens = call.tokens
    known = {
        "gen_ai.request.model": call.model,
        "gen_ai.response.model": call.model if call.ok else None,
        "gen_ai.request.stream": call.stream,
        "gen_ai.response.time_to_first_chunk": call.first_token_seconds,
        "gen_ai.usage.input_tokens": tokens and tokens.prompt,
        "gen_ai.usage.output_tokens": call.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": tokens and tokens.reused,
        "http.response.status_code": call.status,
        "error.type": call.reason,
        "prefillshare.prefill_worker": call.prefill_worker,
        "prefillshare.decode_worker": call.decode_worker,
        "prefillshare.computed_tokens": tokens and tokens.computed,
        "prefillshare.reused_from_others_tokens": tokens and tokens.reused_from_others,
        "prefillshare.prefilled_again": call.prefilled_again or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def _mark_failed(span: Span, code: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)  # without a description: an error's message can be the worker's own words


def _protocol(environment: Mapping[str, str]) -> str:
    """`grpc` unless the environment says HTTP: vLLM's default, so that one endpoint serves router and workers."""
    asked = next((value for name in _PROTOCOLS if (value := environment.get(name))), "grpc")
    return "grpc" if asked == "grpc" else "http"
