from pathlib import Path

import pytest

from experiments.bench import glance
from experiments.bench.publish import publish
from experiments.section import END
from tests.bench.written import CALL, SESSION, write_run
from tests.experiments.bench.open_loop import write_open_loop


def test_a_glance_is_of_the_highest_load_beside_each_baseline(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "docs" / "glance.md"
    page.parent.mkdir()
    page.write_text(f"{glance.GLANCE_START}\n{END}\n")
    monkeypatch.setattr(glance, "GLANCES", {page: glance.glance})
    monkeypatch.setattr(glance, "MACHINES", {"published": ("a machine", "there")})
    write_run(results, [CALL, SESSION], load="closed:4", system="colocated", seconds=90.0)
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    write_open_loop(results, "poisson:0.2", gap_s=5.0, latencies={"shared": 300.0, "per-model": 300.0})
    publish(results)  # leaves it in `published`, and writes the glance
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| a machine")]
    assert [(row[1], *row[2:6]) for row in rows] == [
        ("reflexion, 4 at a time", "3.00 (3.00 to 3.00)", "3.00 (3.00 to 3.00)", "1.50", "1.00"),
        ("reflexion, 12 at a time", "6.00 (6.00 to 6.00)", ">= 3.00 (3.00 to 3.00)", "-", "-"),
        ("reflexion, open loop, 6 arriving a minute", "-", "100.00", "-", "-"),
    ]
    assert rows[0][-1] == "[tables](../bench.md#there)"


def test_ranges_are_of_closed_loops_on_all_machines(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "MACHINES", {"published": ("a machine", ""), "bench-other": ("another", "")})
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    publish(results)
    runs = tmp_path / "bench-other"
    runs.mkdir()
    for repeat, (ours, theirs) in enumerate(((30.0, 27.0), (30.0, 75.0))):
        write_run(runs, [CALL, SESSION], load="closed:8", seconds=ours, repeat=repeat)
        write_run(runs, [CALL, SESSION], load="closed:8", seconds=theirs, system="colocated", repeat=repeat)
    write_run(runs, [CALL, SESSION | {"latency_s": 22.0}], load="closed:8", system="per-model", seconds=33.0)
    assert glance.ranges(tmp_path).splitlines()[2:] == [
        "| reflexion | 8, 12 | 1.1 to 6.0 | >= 1.1 | 0.90 to 2.5 | 1.0 |",
    ]
