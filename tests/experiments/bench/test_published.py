"""What docs/results and the pages hold: nothing here writes to them."""

import re
from pathlib import Path

import pytest

from experiments.bench import glance
from experiments.bench.machines import MACHINES
from experiments.bench.matrices import BOTH_CORES, FLOAT32, LIMITS, MODELS, REPEATS, SHORT_CONTEXTS, SMALL_STEPS
from experiments.bench.places import ALL_FIGURES, PAGES, ROOT
from experiments.bench.publish import OWN_START, START, all_figures
from experiments.bench.summary import summary
from experiments.bench.tables import tables
from experiments.section import END
from prefillshare.bench.figures import Slo, read_runs
from prefillshare.bench.matrix import FULL, load_matrix

IN_README = "bench-limits"
PUBLISHED = {
    "float32": FLOAT32,
    "short-contexts": SHORT_CONTEXTS,
    "repeats": REPEATS,
    "both-cores": BOTH_CORES,
    "limits": LIMITS,
    "small-steps": SMALL_STEPS,
    "models": MODELS,
}


FOLDERS = ("bench", "bench-epyc", *(f"bench-{name}" for name in PUBLISHED))


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_published_is_what_its_records_give(name: str) -> None:
    """Also when there are systems that it does not have. The page has the tables of all folders, README.md one."""
    folder = ROOT / "docs" / "results" / name
    load_matrix(folder / "matrix.json")
    start = START if name == "bench" else OWN_START.format(folder=name)
    runs = read_runs(folder, Slo())
    texts = {page: page.read_text() for page in PAGES}
    readme, page = PAGES
    assert [each for each in texts if start in texts[each]] == [readme] * (name == IN_README) + [page]
    assert f"{start}\n{tables(runs)}\n{END}" in texts[page]
    assert (folder / ALL_FIGURES).read_text() == all_figures(name, runs)
    if name == IN_README:
        assert f"{start}\n{summary(runs)}\n{END}" in texts[readme]


def test_every_table_of_the_pages_is_checked() -> None:
    """One whose folder is not among those above would be of nobody knows which records."""
    known = {START, *(OWN_START.format(folder=name) for name in FOLDERS)}
    for page in PAGES:
        there = re.findall(r"^<!-- table: python -m experiments\.bench publish.*-->$", page.read_text(), re.MULTILINE)
        assert set(there) <= known
        assert len(there) == (1 if page.name == "README.md" else len(FOLDERS))


@pytest.mark.parametrize("page", list(glance.GLANCES), ids=lambda page: page.name)
def test_machines_at_a_glance_are_as_their_records_say(page: Path) -> None:
    assert f"{glance.GLANCE_START}\n{glance.GLANCES[page](page)}\n{END}" in page.read_text()


def test_every_machine_has_a_place_on_the_page() -> None:
    headings = {_anchor(line) for line in PAGES[1].read_text().splitlines() if line.startswith("#")}
    assert {anchor for _, anchor in MACHINES.values()} <= headings
    assert set(MACHINES) == set(FOLDERS)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip("# ").lower()).replace(" ", "-")


def test_matrices_of_published_folders_are_still_those() -> None:
    for name, matrix in PUBLISHED.items():
        assert load_matrix(ROOT / "docs" / "results" / f"bench-{name}" / "matrix.json") == matrix
    assert load_matrix(ROOT / "docs" / "results" / "bench" / "matrix.json") == FULL


def test_the_readme_opens_with_a_published_table() -> None:
    """`publish` leaves it alone where it has no place for one, so nothing else would say that it was lost."""
    readme, _ = PAGES
    assert OWN_START.format(folder=IN_README) in readme.read_text()
