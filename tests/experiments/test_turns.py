"""The table of what turns are worth."""

from pathlib import Path

import pytest

from experiments import turns
from experiments.section import END
from prefillshare.bench.figures import Slo, read_runs
from prefillshare.errors import UserError
from tests.bench.written import CALL, DECODE, PREFILL, SESSION, write_run

RUNS, PUBLISHED, PAGE = turns.RUNS, turns.PUBLISHED, turns.PAGE


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{turns.START}\nold\n{END}\nafter\n")
    monkeypatch.setattr(turns, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(turns, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(turns, "PAGE", file)
    return file


def write(name: str, repeat: int, latency_s: float, core_s: float) -> None:
    workers = [PREFILL, DECODE | {"cpu_s": core_s, "output_tokens": 100.0}]
    (turns.RUNS / name).mkdir(parents=True, exist_ok=True)
    write_run(turns.RUNS / name, [CALL, SESSION | {"latency_s": latency_s}], repeat=repeat, workers=workers)


def test_ratios_are_within_repeats_and_say_how_many_times_better_turns_are(page: Path) -> None:
    for repeat, (without, with_turns) in enumerate(((20.0, 10.0), (90.0, 30.0))):
        write("without", repeat, without, 4.0)
        write("with", repeat, with_turns, 2.0)
    write("without", 2, 500.0, 9.0)  # it was stopped before the other
    table = turns.publish()
    assert table in page.read_text()
    before, after, ratio = table.splitlines()[-3:]
    assert "55.0 (20.0 to 90.0)" in before
    assert "20.0 (10.0 to 30.0)" in after
    assert "2.50 (2.00 to 3.00)" in ratio
    assert before.endswith("| 40.0 (40.0 to 40.0) |")
    assert ratio.endswith("| 2.00 (2.00 to 2.00) |")


def test_runs_that_are_missing_replace_nothing(page: Path) -> None:
    write("without", 0, 20.0, 4.0)
    (turns.RUNS / "with").mkdir()
    with pytest.raises(UserError, match="no run has ended here"):
        turns.publish()
    assert "old" in page.read_text()
    assert not turns.PUBLISHED.exists()


def test_a_page_without_a_place_for_the_table_changes_nothing(page: Path) -> None:
    for name in turns.TURNS_S:
        write(name, 0, 20.0, 4.0)
    page.write_text("no marks")
    with pytest.raises(UserError, match="are missing"):
        turns.publish()
    assert not turns.PUBLISHED.exists()


def test_what_is_published_is_what_its_records_give() -> None:
    text = turns.table({name: read_runs(PUBLISHED / name, Slo()) for name in turns.TURNS_S})
    assert f"{turns.START}\n{text}\n{END}" in PAGE.read_text()
