import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.records import (
    CallRecord,
    Records,
    percentile,
    read_bench,
    read_records,
    summarise,
    write_records,
)

RECORD = CallRecord("s", 0, "m", 1.0, 0.0, 0.1, 0.2, 0.01, 0.5, 100, 40, 31, 60)


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([*range(1, 101)], share) for share in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert (percentile([7], 50), percentile([], 95)) == (7, 0)


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


def test_records_are_read_as_they_were_written_and_more_fields_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    write_records(file, [RECORD, replace(RECORD, turn=1)])
    file.write_text(file.read_text().replace('{"session"', '{"system": "shared", "session"'))
    assert read_records(file) == [RECORD, replace(RECORD, turn=1)]


def test_the_calls_of_a_benchmark_are_read(tmp_path: Path) -> None:
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
    ended = {
        "kind": "session",
        "session": "s",
        "at": 0.0,
        "latency_s": 4.0,
        "busy_s": 3.0,
        "calls": 3,
        "planned_calls": 3,
        "error": None,
    }
    file = tmp_path / "run.jsonl"
    rows = [row | {"error": None}, row | {"error": "503", "ttft_s": None}, ended]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    (record,) = read_bench(file)
    assert (record.turn, record.arrived_s, record.tpot_s) == (2, 1.5, pytest.approx(0.01))
    file.write_text('{"kind": "call", "turn": 1}\n')
    with pytest.raises(UserError, match=r"run.jsonl, line 1: .*error"):
        read_bench(file)


def test_what_is_no_record_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_text('\n{"session": "s"}\n')
    with pytest.raises(UserError, match=r"calls.jsonl, line 2: .*missing"):
        read_records(file)
    with pytest.raises(UserError, match="cannot read"):
        read_records(tmp_path / "none.jsonl")
