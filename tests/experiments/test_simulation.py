import json
from pathlib import Path

import pytest

from experiments import simulation
from prefillshare.simulate.hardware import worker_profile
from prefillshare.workloads.arrivals import Closed


def test_every_system_has_the_same_gpus() -> None:
    for models in (1, 2, 4):
        assert [layout.workers() for layout in simulation.systems(models, models)] == [2 * models] * 3
    assert {simulation.CELLS * layout.workers() for layout in simulation.cell_systems().values()} == {1000}


def test_a_figure_is_written_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "RESULTS", tmp_path)
    profile = worker_profile("a100-80g", "llama-3.1-8b")
    records = [
        simulation.simulate(layout, profile, "react", Closed(load), 10)
        for load in (2, 4)
        for layout in simulation.systems(2, 2)
    ]
    assert {record["sessions"] for record in records} == {10}
    again = simulation.simulate(simulation.systems(2, 2)[0], profile, "react", Closed(2), 10)
    assert again == records[0]
    simulation.write("small", records)
    assert json.loads((tmp_path / "simulation-small.json").read_text())["records"] == records
    simulation.plot(records, lambda record: int(record["load"].removeprefix("closed:")), "load", tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size > 10_000


def test_cells_are_simulated_apart_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "SCRATCH", tmp_path)
    one, other = records = simulation.cluster(cells=2, sessions=30)
    assert one["sessions"] == other["sessions"] == 30
    assert one["load"] == other["load"]
    assert one["latency_p50_s"] != other["latency_p50_s"]

    first, second = sorted(tmp_path.rglob("*.json"))
    first.write_text(json.dumps(one | {"calls": 0}))  # as no simulation has it
    second.unlink()
    again = simulation.cluster(cells=2, sessions=30)
    assert [record | {"cpu_s": 0} for record in again] == [one | {"calls": 0, "cpu_s": 0}, other | {"cpu_s": 0}]
    assert simulation.cluster(cells=1, sessions=20)[0]["sessions"] == 20  # another run
    assert [record["cell"] for record in records] == [0, 1]


def test_a_day_has_its_peak_and_its_trough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [simulation.rate_at(hour) for hour in range(24)]
    assert max(rates) == rates[15] == simulation.CELL_RATE
    assert min(rates) == rates[3] == pytest.approx(0.3 * simulation.CELL_RATE)
    monkeypatch.setattr(simulation, "WINDOW_S", 12.0)
    monkeypatch.setattr(simulation, "WARM_UP_S", 4.0)
    trough, peak = simulation._hour(3), simulation._hour(15)
    assert (peak["sessions_in_the_hour"], trough["sessions_in_the_hour"]) == (1_440_000, 432_000)
    assert trough["sessions"] < peak["sessions"] < 12 * 16  # those of the warm-up are not counted
    without = simulation._hour(15, "per-model")
    assert without["sessions"] == peak["sessions"]
    assert without["hit_ratio"] < peak["hit_ratio"]
    long, small = simulation._hour(15, "colocated"), simulation._hour(15, simulation.SMALL_STEPS)
    assert small["tpot_p95_s"] < long["tpot_p95_s"]
    simulation.plot_day([trough, peak, without], tmp_path / "day.png")
    assert (tmp_path / "day.png").stat().st_size > 10_000


def test_the_gpus_of_a_cell_are_divided_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "WINDOW_S", 4.0)
    monkeypatch.setattr(simulation, "WARM_UP_S", 1.0)
    records = simulation.divisions()
    assert {record["prefill_gpus"] + record["decode_gpus"] for record in records} == {1000 // simulation.CELLS}
    prefill = {
        system: [r["prefill_gpus"] for r in records if r["system"] == system] for system in ("shared", "per-model")
    }
    assert prefill == {"shared": [8, 12, 16, 20, 24], "per-model": [16, 20, 24, 28, 32, 36]}
    assert len({record["sessions"] for record in records}) == 1
    assert len({record["latency_p95_s"] for record in records}) > 2
