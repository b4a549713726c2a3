from dataclasses import replace

import pytest

from prefillshare.simulate.records import CallRecord, Records, of_client, percentiles, summarise

RECORD = CallRecord("s", 0, "m", 1.0, 0.0, 0.1, 0.2, 0.01, 0.5, 100, 40, 31, 60)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles("call", [*range(100, 0, -1)]) == {"call_p50_s": 50, "call_p95_s": 95, "call_p99_s": 99}
    assert percentiles("call", []) == {"call_p50_s": 0, "call_p95_s": 0, "call_p99_s": 0}


def test_a_summary_counts_what_arrived_after_the_beginning() -> None:
    records = Records()
    for arrived in (0.0, 10.0, 20.0):
        records.call(replace(RECORD, arrived_s=arrived))
        records.session(arrived, arrived + 2)
    found = summarise(records, since=5.0)
    assert (found["calls"], found["sessions"], found["seconds"]) == (2, 2, pytest.approx(10.5))
    assert found["hit_ratio"] == pytest.approx(0.4)
    assert found["computed_tokens"] == 120
    assert found["calls_per_s"] == pytest.approx(2 / 10.5)
    assert (found["session_p95_s"], found["latency_p50_s"]) == (pytest.approx(2), pytest.approx(0.5))


def test_the_calls_of_a_benchmark_are_records() -> None:
    row = {
        "kind": "call",
        "session": "s",
        "turn": 2,
        "role": "r",
        "model": "m",
        "at": 1.5,
        "ttft_s": 0.2,
        "latency_s": 0.5,
    }
    row |= {"prompt_tokens": 100, "cached_tokens": 40, "output_tokens": 31, "expected_output_tokens": 31}
    record = of_client(row)
    assert (record.turn, record.arrived_s, record.tpot_s) == (2, 1.5, pytest.approx(0.01))
    assert of_client(row | {"output_tokens": 1}).tpot_s == 0


def test_until_a_limit_what_had_ended_is_known() -> None:
    records = Records()
    for arrived in (0.0, 10.0):
        records.call(replace(RECORD, arrived_s=arrived))
        records.session(arrived, arrived + 2)
    cut = records.until(10.5)
    assert [call.arrived_s for call in cut.calls] == [0.0, 10.0]
    assert cut.sessions == [(0.0, 2.0)]
    assert records.until(10.4).calls == cut.calls[:1]
