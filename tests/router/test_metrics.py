from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from prefillshare.router.accounting import Attribution
from prefillshare.router.metrics import MAX_CODES, Metrics
from prefillshare.router.pool import Pool
from prefillshare.router.record import CallRecord
from tests.router.fakes import decode_worker, prefill_worker


def record(**fields: Any) -> CallRecord:
    known = {"request_id": "id", "endpoint": "completions", "model": "sql", "status": 200, "reason": None}
    return CallRecord(**(known | {"seconds": 2.0} | fields))


def lines(metrics: Metrics) -> set[str]:
    return set(metrics.render().decode().splitlines())


def test_calls_are_counted_and_timed() -> None:
    metrics = Metrics([])
    calls = [
        record(output_tokens=5, stream=True, first_token_seconds=0.4, sent_bytes=300),
        record(seconds=0.2, output_tokens=1, stream=True, first_token_seconds=0.2),
        record(model="unknown", status=404, reason="model_not_found"),
        record(status=499),
    ]
    for _ in [*calls, "under way"]:
        metrics.started()
    for call in calls:
        metrics.finished(call)
    assert lines(metrics) >= {
        'prefillshare_requests_total{model="sql",status="200"} 2.0',
        'prefillshare_requests_total{model="unknown",status="404"} 1.0',
        'prefillshare_requests_total{model="sql",status="499"} 1.0',
        'prefillshare_errors_total{code="model_not_found",model="unknown"} 1.0',
        'prefillshare_output_tokens_total{model="sql"} 6.0',
        'prefillshare_response_bytes_total{model="sql"} 300.0',
        'prefillshare_request_duration_seconds_count{model="sql"} 2.0',
        'prefillshare_request_duration_seconds_sum{model="sql"} 2.2',
        'prefillshare_time_per_output_token_seconds_count{model="sql"} 1.0',
        'prefillshare_time_per_output_token_seconds_sum{model="sql"} 0.4',
        "prefillshare_in_flight_requests 1.0",
    }
    assert [line for line in lines(metrics) if line.startswith("prefillshare_errors_total")] == [
        'prefillshare_errors_total{code="model_not_found",model="unknown"} 1.0'
    ]


def test_prompts_and_first_tokens_are_counted() -> None:
    metrics = Metrics([])
    metrics.prefilled("sql", Attribution(100, 36, 64, reused_from_others=32, payers={"json": 32, "sql": 16}))
    metrics.finished(CallRecord("r", "completions", "sql", 502, "worker_failed", 1.0, first_token_seconds=0.3))
    metrics.kv_lost("sql")
    metrics.placed("prefill", "session")
    assert lines(metrics) >= {
        'prefillshare_prompt_tokens_total{model="sql"} 100.0',
        'prefillshare_computed_tokens_total{model="sql"} 36.0',
        'prefillshare_reused_tokens_total{model="sql"} 64.0',
        'prefillshare_reused_from_others_tokens_total{model="sql"} 32.0',
        'prefillshare_paid_tokens_total{model="sql",payer="json"} 32.0',
        'prefillshare_paid_tokens_total{model="sql",payer="sql"} 16.0',
        'prefillshare_time_to_first_token_seconds_sum{model="sql"} 0.3',
        'prefillshare_kv_lost_total{model="sql"} 1.0',
        'prefillshare_placements_total{leg="prefill",rule="session"} 1.0',
    }


def test_a_prompt_is_counted_once_and_only_what_was_computed_again_is_added() -> None:
    metrics = Metrics([])
    metrics.prefilled("sql", Attribution(100, 36, 64, reused_from_others=32, payers={"json": 32, "sql": 16}))
    metrics.prefilled_again("sql", 4)
    assert lines(metrics) >= {
        'prefillshare_prompt_tokens_total{model="sql"} 104.0',
        'prefillshare_computed_tokens_total{model="sql"} 40.0',
        'prefillshare_reused_tokens_total{model="sql"} 64.0',
        'prefillshare_reused_from_others_tokens_total{model="sql"} 32.0',
        'prefillshare_paid_tokens_total{model="sql",payer="json"} 32.0',
    }


def test_workers_are_watched() -> None:
    pool = Pool("prefill", [prefill_worker("a"), prefill_worker("b")])
    decode = Pool("decode/sql", [decode_worker("sql-0")])
    metrics = Metrics([pool, decode])
    pool.mark_up(pool.workers[0])
    metrics.leg(pool.workers[0], 0.2, None)
    metrics.leg(pool.workers[1], 0.2, "worker_failed")
    with pool.lease(pool.workers[0]):
        found = lines(metrics)
    assert found >= {
        'prefillshare_workers_healthy{pool="prefill"} 1.0',
        'prefillshare_worker_up{pool="prefill",role="prefill",worker="a"} 1.0',
        'prefillshare_worker_up{pool="prefill",role="prefill",worker="b"} 0.0',
        'prefillshare_worker_in_flight_calls{pool="prefill",role="prefill",worker="a"} 1.0',
        'prefillshare_leg_duration_seconds_bucket{le="0.25",leg="prefill",worker="a"} 1.0',
        'prefillshare_leg_duration_seconds_count{leg="prefill",worker="b"} 0.0',
        'prefillshare_leg_duration_seconds_count{leg="decode",worker="sql-0"} 0.0',
        'prefillshare_leg_failures_total{code="worker_failed",leg="prefill",worker="b"} 1.0',
    }


def test_codes_that_workers_make_up_do_not_make_series_without_end() -> None:
    metrics = Metrics([])
    for number in range(MAX_CODES + 5):
        metrics.finished(record(status=400, reason=f"code-{number}"))
    found = [line for line in lines(metrics) if line.startswith("prefillshare_errors_total{")]
    assert len(found) == MAX_CODES + 1
    assert 'prefillshare_errors_total{code="other",model="sql"} 5.0' in found


def test_names_and_units_follow_prometheus_conventions() -> None:
    metrics = Metrics([Pool("prefill", [prefill_worker("a")])])
    for family in text_string_to_metric_families(metrics.render().decode()):
        if not family.name.startswith("prefillshare_") or family.name.endswith("_created"):
            continue
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.type == "gauge":
            assert not family.name.endswith("_total")


def test_what_is_counted_of_a_model_begins_at_zero() -> None:
    assert lines(Metrics([], ["sql"])) >= {
        'prefillshare_requests_total{model="sql",status="200"} 0.0',
        'prefillshare_kv_lost_total{model="sql"} 0.0',
        'prefillshare_reused_from_others_tokens_total{model="sql"} 0.0',
    }


def test_two_routers_in_one_process_count_apart() -> None:
    first, second = Metrics([]), Metrics([])
    first.finished(record())
    assert b'status="200"' not in second.render()
