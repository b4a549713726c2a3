from pathlib import Path

import pytest
from rich.console import Console

from experiments.bench import measure
from experiments.bench.matrices import LIMITS, LIMITS_MORE
from prefillshare.bench.figures import Slo
from prefillshare.bench.matrix import Matrix


def test_systems_of_two_matrices_have_one_measurement_of_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, ...]] = []
    played: list[tuple[tuple[str, ...], Path]] = []
    reported: list[bool] = []

    def calibrate(matrix: Matrix, base: Path, output: Path, console: Console, **how: object) -> int:
        measured.append(matrix.systems)
        output.mkdir()
        (output / "costs.json").write_text("of all")
        return 0

    def run(matrix: Matrix, base: Path, output: Path, console: Console) -> int:
        output.mkdir(exist_ok=True)
        played.append((matrix.systems, output))
        return 0

    def write_report(output: Path, slo: Slo) -> list[Path]:
        reported.append((output / "costs.json").read_text() == "of all")
        return []

    monkeypatch.setattr(measure, "prepare_base", lambda folder: folder)
    for each in (calibrate, run, write_report):
        monkeypatch.setattr(measure, each.__name__, each)
    for _ in range(2):  # what is measured is not measured again
        assert measure.measure((LIMITS, LIMITS_MORE), tmp_path / "limits", None) == 0
    assert measured == [("shared", "colocated", "shared-lora", "per-model")]
    folders = (tmp_path / "limits", tmp_path / "limits-more")
    assert played == [(LIMITS.systems, folders[0]), (LIMITS_MORE.systems, folders[1])] * 2
    assert reported == [True] * 4
