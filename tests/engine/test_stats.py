"""What vLLM does with the connector's statistics: add them up, and publish them."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from prefillshare.engine.handoff import Refusal
from prefillshare.engine.refusals import REFUSALS
from prefillshare.engine.stats import HandoffMetrics, HandoffStats

LABELS = ["model_name", "engine"]


@pytest.fixture
def metrics() -> Iterator[HandoffMetrics]:
    before = set(REGISTRY._collector_to_names)
    yield HandoffMetrics(
        SimpleNamespace(kv_transfer_config=None),  # type: ignore[arg-type]
        {Counter: Counter, Gauge: Gauge, Histogram: Histogram},  # type: ignore[type-var]
        LABELS,
        {0: ["sql", "0"]},
    )
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": "sql", "engine": "0", **labels})


def test_every_series_is_there_before_anything_happens(metrics: HandoffMetrics) -> None:
    text = generate_latest(REGISTRY).decode()
    for name in (
        "pulled_tokens_total",
        "pulled_bytes_total",
        "reused_tokens_total",
        "reused_blocks_total",
        "refusals_total",
        "lease_expiries_total",
        "seconds_count",
    ):
        assert f"prefillshare_handoff_{name}{{" in text, name
    assert value("prefillshare_handoff_refusals_total", reason="another_base") == 0


def test_what_was_recorded_is_published(metrics: HandoffMetrics) -> None:
    worker, scheduler = HandoffStats(), HandoffStats()
    worker.data["bytes_transferred"] += [100, 50]
    worker.data["transfer_duration"] += [0.1, 0.1]
    worker.record_kv_expired_req()
    scheduler.record_plan(reused_tokens=96, block_size=32)
    scheduler.record_pull(tokens=7, seconds=0.02)
    scheduler.record_refusal("cmpl-a-0", Refusal("preempted", "no room"))
    scheduler.record_refusal("cmpl-b-0", Refusal("preempted", "no room"))
    together = worker.aggregate(scheduler)
    metrics.observe(HandoffStats(data=together.data).data, 0)  # as it comes out of another process
    expected = {
        "pulled_tokens_total": 7,
        "pulled_bytes_total": 150,
        "reused_tokens_total": 96,
        "reused_blocks_total": 3,
        "lease_expiries_total": 1,
        "seconds_count": 1,
    }
    assert {name: value(f"prefillshare_handoff_{name}") for name in expected} == expected
    assert value("prefillshare_handoff_refusals_total", reason="preempted") == 2
    assert REFUSALS.fed
    assert REFUSALS.take("b") == Refusal("preempted", "no room")
    assert value("vllm:nixl_num_kv_expired_reqs_total") == 1  # vLLM's own go on


@pytest.mark.parametrize("record", ["record_plan", "record_pull", "record_refusal"])
def test_statistics_are_sent_when_there_is_something(record: str) -> None:
    stats = HandoffStats()
    assert stats.is_empty()
    arguments = {
        "record_plan": {"reused_tokens": 0, "block_size": 32},
        "record_pull": {"tokens": 1, "seconds": 0.1},
        "record_refusal": {"request_id": "a", "refusal": Refusal("preempted", "")},
    }
    getattr(stats, record)(**arguments[record])
    assert not stats.is_empty()
    assert not stats.clone_and_reset().is_empty()
    assert stats.is_empty()
