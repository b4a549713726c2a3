from pathlib import Path

from experiments.bench.publish import publish
from tests.bench.written import CALL, SESSION, WORKER, write_run
from tests.experiments.bench.open_loop import write_open_loop


def test_the_summary_is_of_the_highest_load(results: Path, pages: tuple[Path, Path]) -> None:
    publish(results)
    text = pages[0].read_text()
    assert text.startswith("before\n") and text.endswith("after\n")  # noqa: PT018
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| | | shared | per-model | shared against per-model |",
        "| reflexion, 12 at a time | sessions a minute | 1.00 (1.00 to 1.00) | 0.17 (0.17 to 0.17) | "
        "6.00 (6.00 to 6.00) x |",
        "|  | goodput, calls a minute | 1.0 (1.0 to 1.0) | 0.3 (0.3 to 0.3) | 3.00 (3.00 to 3.00) x |",
        "|  | session p95, s | 20.0 (20.0 to 20.0) | >= 60.0 (60.0 to 60.0) | >= 3.00 (3.00 to 3.00) x |",
    ]


def test_the_vllm_with_adapters_is_compared_with_ours_that_has_them(results: Path, pages: tuple[Path, Path]) -> None:
    for system, seconds in (("shared-lora", 30.0), ("colocated-lora", 45.0)):
        one = WORKER | {"name": "w", "role": "both", "core": None, "cpu_s": 90.0}
        write_run(results, [CALL, SESSION], load="closed:12", system=system, seconds=seconds, workers=[one])
    publish(results)
    head, row = [line for line in pages[0].read_text().splitlines() if line.startswith("| ")][:2]
    assert head == (
        "| | | shared | shared-lora | per-model | colocated-lora | shared against per-model | "
        "shared-lora against colocated-lora |"
    )
    assert row.endswith(" | 1.50 x |")
    assert "| 12 | shared | colocated-lora | " in pages[1].read_text()


def test_an_open_loops_summary_is_of_the_highest_load_that_shared_kept_up_with(
    results: Path, pages: tuple[Path, Path]
) -> None:
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    write_open_loop(results, "poisson:0.2", gap_s=5.0, latencies={"shared": 300.0, "per-model": 300.0})
    publish(results)
    text = pages[0].read_text()
    assert "| reflexion, open loop | kept up with, sessions arriving a minute | 6 (1.00) | < 6 (0.05) |  |" in text
    assert "| reflexion, open loop, 6 arriving a minute | goodput, calls a minute | 20.0 | 0.0 |  |" in text
    assert "|  | session p95, s | 3.0 | 300.0 | 100.00 x |" in text
    assert "12 arriving" not in text


def test_an_open_loop_is_named_by_the_arrivals_that_shared_met(results: Path, pages: tuple[Path, Path]) -> None:
    """In the middle of its repeats, of which others may have fewer."""
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 3.0, "colocated": 3.0})
    write_open_loop(results, "poisson:0.1", gap_s=7.5, latencies={"shared": 3.0}, repeat=1)
    publish(results)
    text = pages[0].read_text()
    assert "| reflexion, open loop, 7 arriving a minute | goodput, calls a minute | 20.0 (20.0 to 20.0) |" in text
    assert "|  | session p95, s | 3.0 (3.0 to 3.0) |" in text
