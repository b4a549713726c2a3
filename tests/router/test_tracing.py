import asyncio
import importlib.util
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.errors import UserError
from prefillshare.router import app, assembly, tracing
from prefillshare.router.record import CallRecord
from prefillshare.router.tracing import OpenTelemetry, Tracing, check_tracing, open_tracing
from prefillshare.router_config import RouterConfig, TracingConfig
from tests.router.conftest import Cluster
from tests.router.fakes import FACTS, Served, wait_for

CHAT: dict[str, Any] = {"model": "sql", "messages": [{"role": "user", "content": "hello"}], "user": "ann"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
ENDPOINT = TracingConfig(otlp_endpoint="http://127.0.0.1:4317")


class Traced:
    """A router whose spans are kept in memory."""

    def __init__(self, cluster: Cluster, exporter: InMemorySpanExporter) -> None:
        self.cluster = cluster
        self._exporter = exporter

    def call(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.cluster.http.post("/v1/chat/completions", json=body, headers=headers)

    def spans(self, number: int) -> list[ReadableSpan]:
        """All spans, of which there must be that many, in the order in which they ended."""
        wait_for(lambda: len(self._exporter.get_finished_spans()) >= number)
        spans = list(self._exporter.get_finished_spans())
        assert len(spans) == number, [span.name for span in spans]
        return spans


@pytest.fixture
def traced(start_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> Traced:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(assembly, "open_tracing", lambda settings, environment: OpenTelemetry(provider))
    return Traced(start_cluster(prefill=2), exporter)


def position(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_a_span_with_a_child_for_each_leg(traced: Traced, stream: bool) -> None:
    response = traced.call(CHAT | {"stream": stream})
    prefill, decode, call = traced.spans(3)
    assert [span.name for span in (prefill, decode, call)] == ["prefill", "decode", "chat sql"]
    assert call.parent is None
    assert parent_of(prefill) == parent_of(decode) == position(call)
    assert [span.kind for span in (prefill, decode, call)] == [SpanKind.CLIENT, SpanKind.CLIENT, SpanKind.SERVER]
    attributes = dict(call.attributes or {})
    assert (attributes.pop("gen_ai.response.time_to_first_chunk", None) is not None) is stream
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "prefillshare",
        "gen_ai.request.model": "sql",
        "gen_ai.response.model": "sql",
        "gen_ai.request.stream": stream,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "prefillshare.request_id": response.headers["x-request-id"],
        "prefillshare.prefill_worker": "prefill-0",
        "prefillshare.decode_worker": "sql-0",
        "prefillshare.computed_tokens": 11,
        "prefillshare.reused_from_others_tokens": 0,
    }
    assert dict(prefill.attributes or {}) == {
        "gen_ai.provider.name": "prefillshare",
        "gen_ai.request.model": "base",
        "server.address": "127.0.0.1",
        "server.port": int(traced.cluster.servers["prefill-0"].url.rpartition(":")[2]),
        "prefillshare.leg": "prefill",
        "prefillshare.worker": "prefill-0",
    }
    assert (decode.attributes or {})["gen_ai.request.model"] == "sql"
    assert (decode.attributes or {})["prefillshare.worker"] == "sql-0"


def test_the_clients_trace_goes_on_through_the_router_to_both_workers(traced: Traced) -> None:
    traced.call(CHAT, traceparent=PARENT, tracestate="vendor=secret", baggage="user=secret")
    prefill, decode, call = traced.spans(3)
    assert parent_of(call) == PARENT
    for span, fake in ((prefill, traced.cluster.prefill[0]), (decode, traced.cluster.decode["sql"][0])):
        assert fake.headers[0]["traceparent"] == position(span)
        assert TRACE in position(span)
        assert not fake.headers[0].keys() & {"tracestate", "baggage"}


@pytest.mark.parametrize("header", ["hello", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "é" * 300])
def test_a_malformed_traceparent_begins_a_new_trace(traced: Traced, header: str) -> None:
    assert traced.call(CHAT, traceparent=header.encode("latin-1")).status_code == 200  # type: ignore[arg-type]
    assert traced.spans(3)[-1].parent is None


def test_calls_at_once_do_not_mix_up_their_legs(traced: Traced) -> None:
    async def ask(number: int) -> None:
        trace = f"{number + 1:032x}"
        async with httpx.AsyncClient(base_url=traced.cluster.url) as client:
            await client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": f"00-{trace}-{'1' * 16}-01"})

    async def ask_all() -> None:
        await asyncio.gather(*map(ask, range(12)))

    asyncio.run(ask_all())
    spans = traced.spans(36)
    calls = {position(span) for span in spans if span.kind == SpanKind.SERVER}
    legs = [(parent_of(span), span.name) for span in spans if span.kind == SpanKind.CLIENT]
    assert sorted(legs) == sorted((call, leg) for call in calls for leg in ("prefill", "decode"))


def test_no_span_holds_what_a_client_has_sent(traced: Traced) -> None:
    traced.call(CHAT, **{"authorization": "Bearer hello", "x-session-id": "hello"})
    traced.call(CHAT | {"model": "hello"})
    traced.call(CHAT | {"n": 2})
    traced.cluster.decode["sql"][0].behaviour = "400"
    traced.call(CHAT)
    text = json.dumps([json.loads(span.to_json()) for span in traced.spans(12)])
    assert not any(word in text for word in ("hello", "ann", "no such thing"))


def test_a_workers_failure_is_an_error_of_its_leg_and_of_the_call(traced: Traced) -> None:
    traced.cluster.decode["sql"][0].behaviour = "500"
    traced.call(CHAT)
    *legs, call = traced.spans(7)  # tried three times
    assert [leg.status.status_code for leg in legs] == 3 * [StatusCode.UNSET, StatusCode.ERROR]
    assert call.status.status_code == StatusCode.ERROR
    decode = legs[-1]
    assert (decode.attributes or {})["error.type"] == "worker_failed"
    assert (call.attributes or {})["http.response.status_code"] == 502


def test_a_clients_mistake_is_no_error_of_the_servers_span(traced: Traced) -> None:
    traced.call(CHAT | {"model": "nobody"})
    (call,) = traced.spans(1)
    assert call.name == "chat unknown"
    assert call.status.status_code == StatusCode.UNSET
    assert (call.attributes or {})["error.type"] == "model_not_found"


def test_a_leg_that_moves_to_another_worker_is_two_spans(traced: Traced) -> None:
    traced.cluster.servers["prefill-0"].stop()
    traced.call(CHAT)
    names = [(span.name, (span.attributes or {}).get("error.type")) for span in traced.spans(4)]
    assert names == [("prefill", "not_connected"), ("prefill", None), ("decode", None), ("chat sql", None)]
    metrics = traced.cluster.http.get("/metrics").text
    failed = 'prefillshare_leg_failures_total{code="not_connected",leg="prefill",worker="prefill-0"} 1.0'
    assert failed in metrics


def test_a_call_that_is_prefilled_again_says_so(traced: Traced) -> None:
    traced.cluster.decode["sql"][0].refusals = ["lease_expired"]
    traced.call(CHAT)
    *legs, call = traced.spans(5)
    assert [(leg.attributes or {}).get("error.type") for leg in legs] == [None, "kv_lost", None, None]
    assert (call.attributes or {})["prefillshare.prefilled_again"] is True


def test_without_an_endpoint_there_are_no_spans_and_no_trace_headers(cluster: Cluster) -> None:
    assert type(open_tracing(TracingConfig(), {})) is Tracing
    assert type(open_tracing(ENDPOINT, {"OTEL_SDK_DISABLED": "true"})) is Tracing
    cluster.http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": PARENT})
    assert "traceparent" not in cluster.prefill[0].headers[0]


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        (ENDPOINT, {}),
        (TracingConfig(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}),
        (TracingConfig(), {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}),
        (ENDPOINT, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}),
    ],
)
def test_an_endpoint_in_the_file_or_the_environment_turns_it_on(
    settings: TracingConfig, environment: dict[str, str]
) -> None:
    for package in ("grpc", "requests"):
        pytest.importorskip(package)
    opened = open_tracing(settings, environment)
    assert isinstance(opened, OpenTelemetry)
    opened.close()


@pytest.mark.parametrize(
    ("settings", "environment", "named"),
    [
        (ENDPOINT, {}, "router.tracing.otlp_endpoint asks"),
        (TracingConfig(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_ENDPOINT asks"),
    ],
)
def test_asking_for_traces_without_opentelemetry_is_an_error_that_says_what_to_install(
    settings: TracingConfig, environment: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(UserError, match=named) as caught:
        check_tracing(settings, environment)
    assert "pip install 'prefillshare[tracing]'" in str(caught.value)
    check_tracing(TracingConfig(), {})  # nothing is needed when nothing is asked for
    if settings.otlp_endpoint:
        with pytest.raises(UserError, match="prefillshare\\[tracing\\]"):
            app.create_app(RouterConfig(tracing=settings), {}, FACTS)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ],
)
def test_a_variable_that_opentelemetry_refuses_is_found_before_anything_starts(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=rf"otlp_endpoint asks for traces: OpenTelemetry refuses .*{variable}"):
        check_tracing(ENDPOINT, os.environ)
    with pytest.raises(UserError):
        app.create_app(RouterConfig(tracing=ENDPOINT), {}, FACTS)


def test_a_check_of_what_is_right_leaves_nothing_running() -> None:
    before = threading.active_count()
    check_tracing(ENDPOINT, {})
    assert threading.active_count() == before


def test_a_collector_that_does_not_answer_keeps_no_router_from_stopping(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_S", 0.1)
    answers = threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            answers.wait(20)
            return super().export(spans)

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Hanging()))
    opened = OpenTelemetry(provider)
    opened.start("completions", "id", []).end(CallRecord("id", "completions", "sql", 200, None, 1.0))
    started = time.monotonic()
    opened.close()
    assert time.monotonic() - started < 5
    assert "the last spans were not sent" in caplog.text
    answers.set()


def test_opentelemetry_is_imported_only_when_it_is_on() -> None:
    source = importlib.util.find_spec("prefillshare.router.tracing")
    assert source is not None
    assert source.origin is not None
    with open(source.origin) as file:
        top = [line for line in file if line.startswith(("import ", "from "))]
    assert not any("opentelemetry" in line for line in top)
    assert tracing.Tracing().start("completions", "id", []).end is not None


def test_spans_arrive_at_a_collector_before_the_router_ends(
    serve: Callable[[ASGIApp], Served],
) -> None:
    messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[bytes] = []

    async def collect(request: Request) -> Response:
        received.append(await request.body())
        return Response(media_type="application/x-protobuf")

    collector = serve(Starlette(routes=[Route("/v1/traces", collect, methods=["POST"])]))
    environment = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    opened = open_tracing(
        TracingConfig(otlp_endpoint=f"{collector.url}/v1/traces", service_name="router-7"), environment
    )
    opened.start("completions", "id", []).end(CallRecord("id", "completions", "sql", 200, None, 1.0))
    opened.close()
    (resource,) = messages.ExportTraceServiceRequest.FromString(received[0]).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["text_completion sql"]
    names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert names["service.name"] == "router-7"
