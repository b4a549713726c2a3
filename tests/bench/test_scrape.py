from prefillshare.bench.scrape import gauges, growth, totals

TEXT = """# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="1.0"} 3.0
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf"} 3.0
vllm:request_queue_time_seconds_count{engine="0"} 3.0
vllm:request_queue_time_seconds_sum{engine="0"} 0.75
# TYPE prefillshare_handoff_refusals counter
prefillshare_handoff_refusals_total{reason="no_handoff"} 2.0
prefillshare_handoff_refusals_total{reason="pull_failed"} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 1.0
"""


def test_totals_are_summed_over_labels_and_leave_out_gauges_and_buckets() -> None:
    assert totals(TEXT) == {
        "vllm:request_queue_time_seconds_count": 3.0,
        "vllm:request_queue_time_seconds_sum": 0.75,
        "prefillshare_handoff_refusals_total": 3.0,
    }


def test_a_total_that_is_new_has_grown_from_nothing() -> None:
    assert growth({"a_sum": 1.0}, {"a_sum": 1.5, "b_sum": 2.0}) == {"a_sum": 0.5, "b_sum": 2.0}


def test_gauges_are_asked_for_by_name() -> None:
    assert gauges(TEXT, "vllm:num_requests_running", "vllm:nothing") == {"vllm:num_requests_running": 1.0}


def test_lines_that_were_not_asked_for_are_not_parsed() -> None:
    others = 'vllm:num_requests_running_by_reason{reason="a"} 5.0\nvllm:broken{ nothing that can be parsed\n'
    assert gauges(others + TEXT, "vllm:num_requests_running") == {"vllm:num_requests_running": 1.0}
