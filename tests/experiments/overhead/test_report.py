from pathlib import Path
from typing import Any

import pytest

from experiments.overhead.report import LATENCY_CELLS, added, draw, latency_table, per_core, throughput_table
from experiments.overhead.systems import DIRECT, OURS, RUST


def record(cell: str, system: str, number: int, p50: float, cpu: float | None) -> dict[str, Any]:
    return {
        "round": number,
        "cell": cell,
        "system": system,
        "requests": 1000,
        "answer_tokens": 256,
        "wall_s": 3.0,
        "p50_ms": p50,
        "p99_ms": 2 * p50,
        "cpu_s": cpu,
    }


RECORDS = [
    record(cell, system, number, p50 + number / 10, cpu)
    for number in range(3)
    for cell in (*LATENCY_CELLS, "requests", "tokens")
    for system, p50, cpu in ((DIRECT, 0.5, None), (OURS, 2.0, 0.5), (RUST, 1.0, 0.25))
    if cpu or cell in LATENCY_CELLS
]


def test_what_a_system_adds_is_its_time_less_that_of_the_same_round_without_one() -> None:
    assert added(RECORDS, "latency-2000", OURS, "p50_ms") == pytest.approx([1.5] * 3)
    assert added(RECORDS, "latency-2000", OURS, "p99_ms") == pytest.approx([3.0] * 3)


def test_what_a_core_carries_goes_by_its_time_not_by_the_clock() -> None:
    assert per_core(RECORDS, "requests", OURS) == [2000] * 3
    assert per_core(RECORDS, "tokens", RUST) == [1024_000] * 3


def test_the_tables_show_the_systems_that_were_measured() -> None:
    assert "| **PrefillShare's router** | 1.50 (1.50 to 1.50) | 3.00" in latency_table(RECORDS)
    table = throughput_table(RECORDS)
    assert "| 2,000 (2,000 to 2,000) | 512,000" in table
    assert "| PrefillShare's router / vllm-router | 0.50 | 0.50 | |" in table
    assert "vllm-router" not in throughput_table([one for one in RECORDS if one["system"] != RUST])


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw(RECORDS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
