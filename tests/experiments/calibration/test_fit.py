"""What some runs tell of the machine, and what that is worth for others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.calibration import __main__ as command
from experiments.calibration import publish
from experiments.calibration.report import ratios
from experiments.calibration.runs import Played, compare
from experiments.calibration.worth import what_the_fit_is_worth
from prefillshare.bench.costs import FILE
from prefillshare.simulate.calibrate import Pace, fit_pace
from tests.bench.written import CALL, SESSION, write_run
from tests.experiments.calibration.made import COSTS, played_by_simulator


def several(tmp_path: Path) -> list[Played]:
    """Runs during which the machine took a third longer than when its costs were measured."""
    return [
        played_by_simulator(tmp_path, system, load=load, pace=Pace(4 / 3))
        for load in ("closed:1", "closed:2", "closed:3")
        for system in ("shared", "per-model")
    ]


def test_what_some_runs_tell_of_the_machine_predicts_others(
    tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = page.parent / "results" / "bench-one"
    results.mkdir()
    runs = iter(several(tmp_path))
    for number in range(6):
        write_run(results, [CALL, SESSION], repeat=number)
    (results / FILE).write_text(json.dumps(COSTS))
    to_fit = ["tool_heavy/closed:1", "tool_heavy/closed:3"]
    monkeypatch.setattr(command, "played", lambda *_: next(runs))
    monkeypatch.setattr("sys.argv", ["calibration", str(results), "--fit", *to_fit, "--publish"])
    assert command.main() == 0
    told = capsys.readouterr().out
    assert "Fitted: everything takes 1.33 times as long" in told
    assert re.search(r"\| session p95 s, mean error of a run \| [12]\d\.\d% .* \| 0\.\d% ", told)
    assert "| tool_heavy, 5 calls, 2 models, closed:2 | shared |" in told
    assert "closed:1 |" not in told  # what was fitted to is no prediction
    written = (results / publish.TABLES).read_text()
    assert f"docs/results/bench-one --fit {' '.join(to_fit)} --publish" in written
    assert told.strip() in written
    by_costs, fitted = (line for line in page.read_text().splitlines() if "](results/bench-one/" in line)
    assert re.search(r"\| costs as measured \| [12]\d\.\d% ", by_costs)
    assert re.search(r"\| fitted \| 0\.\d% ", fitted)
    published = json.loads((results / publish.PREDICTED).read_text())
    assert published["pace"]["factor"] == pytest.approx(4 / 3, rel=1e-3)
    assert {run["load"] for run in published["runs"]} == {"closed:2"}


def test_a_ratio_has_the_range_of_a_machine_that_was_not_as_fast_in_both_runs(tmp_path: Path) -> None:
    runs = several(tmp_path)
    pace = fit_pace([run.measured for run in runs if run.run.load != "closed:2"])
    predicted = [compare(run, pace, ranges=True) for run in runs if run.run.load == "closed:2"]
    for run, one in zip((run for run in runs if run.run.load == "closed:2"), predicted, strict=True):
        ends = [compare(run, replace(pace, factor=each * pace.factor)).simulated for each in (0.95, 1.05)]
        for name, (least, most) in one.ranges.items():
            assert least <= min(end[name] for end in ends) <= max(end[name] for end in ends) <= most
            assert 0.9 * least <= one.simulated[name] <= 1.1 * most
    shared, other = (one.ranges for one in predicted)
    for ratio in ratios(predicted):
        better, worse = (shared, other) if ratio["figure"] == "calls_per_s" else (other, shared)
        (least, most), (worse_least, worse_most) = better[ratio["figure"]], worse[ratio["figure"]]
        assert (ratio["least"], ratio["most"]) == (least / worse_most, most / worse_least)
        assert ratio["least"] < ratio["simulated"] < ratio["most"]
    # Measured 30 % better than simulated: neither within 15 % nor in the range.
    off = [replace(one, measured={name: 1.3 * value for name, value in one.measured.items()}) for one in predicted[1:]]
    text = what_the_fit_is_worth([predicted[0], *off], predicted, Pace(1.3333, 1.0))
    assert "| ratios of `shared` to `per-model` within 15%; the worst | 0 of 2;" in text
    assert "| and within what a machine 5 % faster or slower in either run makes | 0 of 2 | 2 of 2 |" in text
