from pathlib import Path

from prefillshare.bench.cells import by_load, by_panel, by_system, in_figures, size_of
from prefillshare.bench.figures import Slo, read_runs
from tests.bench.written import CALL, SESSION, write_run


def test_loads_of_two_kinds_are_not_shown_against_one_axis(tmp_path: Path) -> None:
    for load in ("closed:12", "closed:4", "poisson:0.05"):
        for system in ("per-model", "shared"):
            write_run(tmp_path, [CALL, SESSION], load=load, system=system)
    panels = by_panel(read_runs(tmp_path, Slo()))
    assert [(panel.workload, panel.models, panel.kind, panel.is_open, len(runs)) for panel, runs in panels.items()] == [
        ("reflexion", 4, "closed", False, 4),
        ("reflexion", 4, "poisson", True, 2),
    ]
    closed = next(iter(panels.values()))
    assert list(by_load(closed)) == ["closed:4", "closed:12"]
    assert list(by_system(closed)) == ["shared", "per-model"]


def test_open_loads_are_told_by_the_minute() -> None:
    assert (size_of("closed:4"), in_figures("closed:1200")) == (4, "1200")
    assert (size_of("poisson:0.05"), in_figures("poisson:0.05"), in_figures("poisson:0.0333")) == (3, "3", "2")
    assert in_figures("poisson:0.0375") == "2.25"


def test_recorded_arrivals_are_an_open_loop_of_their_own(tmp_path: Path) -> None:
    for load in ("trace:2", "trace", "poisson:0.05", "closed:4"):
        write_run(tmp_path, [CALL, SESSION], load=load)
    panels = by_panel(read_runs(tmp_path, Slo()))
    assert [(panel.kind, panel.is_open, panel.how) for panel in panels] == [
        ("closed", False, ""),
        ("poisson", True, ""),
        ("trace", True, ", as recorded"),
    ]
    assert list(by_load(list(panels.values())[2])) == ["trace", "trace:2"]
    assert in_figures("trace:0.5") == "0.5"
