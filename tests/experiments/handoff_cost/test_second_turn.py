import pytest

from experiments.handoff_cost.second_turn import parts_ms

HEADERS = {"x-prefillshare-prefill-ms": "420.0"}
PREFILL = {"vllm:request_queue_time_seconds_sum": 0.010, "vllm:request_prefill_time_seconds_sum": 0.390}
DECODE = {
    "vllm:request_queue_time_seconds_sum": 0.030,
    "vllm:request_prefill_time_seconds_sum": 0.040,
    "vllm:time_to_first_token_seconds_sum": 0.075,
}
PARTS = {
    "prefill_queue": 10.0,
    "prefill_compute": 390.0,
    "prefill_rest": 20.0,
    "handoff": 30.0,
    "decode_step": 40.0,
    "decode_rest": 5.0,
    "router": 5.0,
}


def test_the_parts_add_up_to_the_time_to_the_first_token() -> None:
    parts = parts_ms(0.5, HEADERS, PREFILL, DECODE)
    assert parts == pytest.approx(PARTS)
    assert sum(parts.values()) == pytest.approx(500.0)


def test_a_worker_that_times_its_handoffs_is_believed() -> None:
    timed = {"prefillshare_handoff_seconds_sum": 0.025, "prefillshare_handoff_seconds_count": 1.0}
    parts = parts_ms(0.5, HEADERS, PREFILL, DECODE | timed)
    assert parts == pytest.approx(PARTS | {"handoff": 25.0, "decode_rest": 10.0})
