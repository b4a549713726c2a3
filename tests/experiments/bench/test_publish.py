from pathlib import Path

import pytest

from experiments.bench import places
from experiments.bench.matrices import MODELS
from experiments.bench.plots import PLOTS
from experiments.bench.publish import OWN_START, publish
from experiments.section import END
from prefillshare.errors import UserError
from tests.bench.written import CALL, SESSION, write_run


@pytest.mark.parametrize("shown", PLOTS)
def test_records_costs_and_the_plot_that_a_page_shows_are_kept_beside_the_tables(
    results: Path, pages: tuple[Path, Path], shown: str
) -> None:
    published = places.PUBLISHED
    pages[1].write_text(f"{pages[1].read_text()}\n![plot](results/{published.name}/{shown})\n")
    publish(results)
    assert [file.name for file in published.glob("*.png")] == [shown]
    assert (published / shown).read_bytes().startswith(b"\x89PNG")
    assert (published / "costs.json").read_text() == (results / "costs.json").read_text()
    copied = sorted(file.name for file in (published / "runs").iterdir())
    assert copied == sorted(file.name for file in (results / "runs").iterdir())
    publish(published)  # from what is there


def test_runs_of_further_folders_stand_in_place_of_those_of_the_same_cell(
    results: Path, pages: tuple[Path, Path], tmp_path: Path
) -> None:
    others = tmp_path / "together"
    others.mkdir()
    for system, latency_s in (("shared", 5.0), ("colocated", 10.0)):
        write_run(others, [CALL, SESSION | {"latency_s": latency_s}], load="closed:12", system=system)
    publish(results, [others])
    row = next(line for line in pages[0].read_text().splitlines() if "session p95" in line)
    assert row.startswith("|  | session p95, s | 12.5 (5.0 to 20.0) | >= 60.0 (60.0 to 60.0) | 10.0 |")
    assert len(list((places.PUBLISHED / "runs").iterdir())) == len(list((results / "runs").iterdir())) + 2
    before = pages[0].read_text()
    for file in (others / "runs").glob("shared*.json"):
        file.write_text(file.read_text().replace('"a processor"', '"another"'))
    with pytest.raises(UserError, match="several kinds of processor: a processor, another"):
        publish(results, [others])
    with pytest.raises(UserError, match="no run has ended"):
        publish(results, [tmp_path / "nothing"])
    assert pages[0].read_text() == before


def test_runs_in_float32_have_a_table_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    publish(results)
    readme, table = (page.read_text() for page in pages)
    folder = f"bench-{results.name}"
    for file in (results / "runs").glob("*.json"):
        file.write_text(file.read_text().replace('"bfloat16"', '"float32"'))
    for page, text in zip(pages, (readme, table), strict=True):
        page.write_text(f"{text}\n{OWN_START.format(folder=folder)}\n{END}\n")
    publish(results)
    for page, text in zip(pages, (readme, table), strict=True):
        assert page.read_text().startswith(text)
    assert "| sessions a minute |" in pages[0].read_text().removeprefix(readme)
    assert "| 12 | shared | per-model | " in pages[1].read_text().removeprefix(table)
    others = places.PUBLISHED.with_name(folder)
    assert (others / "costs.json").exists()
    assert len(list((others / "runs").iterdir())) == len(list((results / "runs").iterdir()))


def test_runs_of_another_matrix_have_a_table_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    other = results.rename(results.with_name("others"))
    (other / "matrix.json").write_text(MODELS.model_dump_json())
    with pytest.raises(UserError, match="are missing"):
        publish(other)
    pages[1].write_text(pages[1].read_text() + f"{OWN_START.format(folder='bench-others')}\n{END}\n")
    readme, table = (page.read_text() for page in pages)
    publish(other)
    assert pages[0].read_text() == readme
    assert pages[1].read_text().startswith(table.split(OWN_START.format(folder="bench-others"))[0])
    assert "| 12 | shared | per-model | " in pages[1].read_text()
    assert not places.PUBLISHED.exists()
    publish(places.PUBLISHED.with_name("bench-others"))  # from what is there


def test_runs_in_float32_without_a_place_for_their_table_are_not_copied(results: Path) -> None:
    for file in (results / "runs").glob("*.json"):
        file.write_text(file.read_text().replace('"bfloat16"', '"float32"'))
    with pytest.raises(UserError, match="are missing"):
        publish(results)
    assert not places.PUBLISHED.with_name(f"bench-{results.name}").exists()


def test_a_page_without_marks_is_refused_and_the_readme_left_alone(results: Path, pages: tuple[Path, Path]) -> None:
    readme, page = pages
    written = page.read_text()
    page.write_text("nothing")
    before = readme.read_text()
    with pytest.raises(UserError, match="are missing"):
        publish(results)
    assert readme.read_text() == before
    page.write_text(written)
    readme.write_text("nothing")
    publish(results)
    assert readme.read_text() == "nothing"
    assert page.read_text() != written


def test_what_is_incomplete_replaces_nothing(results: Path, tmp_path: Path) -> None:
    publish(results)
    (results / "costs.json").unlink()
    with pytest.raises(UserError, match="bench calibrate"):
        publish(results)
    with pytest.raises(UserError, match="no run has ended"):
        publish(tmp_path / "nothing")
    assert list((places.PUBLISHED / "runs").iterdir())
