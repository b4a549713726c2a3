import re
from pathlib import Path

import pytest
from rich.console import Console

from experiments import bench
from experiments.section import END
from prefillshare.bench.figures import Slo, read_runs
from prefillshare.bench.matrix import Matrix, load_matrix, runs
from prefillshare.bench.open_loop import FEWEST
from prefillshare.errors import UserError
from prefillshare.workloads.arrivals import Poisson, parse_arrivals
from tests.bench.written import CALL, SESSION, WORKER, write_run

# Before `pages` puts others in their place.
REAL = {"START": bench.START, "PAGES": bench.PAGES, "PUBLISHED": bench.PUBLISHED, "GLANCES": bench.GLANCES}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two loads, two repeats; `per-model` is three times as slow, and at the higher load it is cut off."""
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "costs.json").write_text('{"cost": {"step_s": 0.1, "token_s": 0.2}, "leg_s": 0, "link_bytes_per_s": 1}')
    (folder / "matrix.json").write_text(bench.FULL.model_dump_json())
    for load in ("closed:4", "closed:12"):
        for repeat in (0, 1):
            write_run(folder, [CALL, SESSION], load=load, repeat=repeat)
            slow = SESSION | {"latency_s": 60.0, "calls": 4 if load == "closed:4" else 2}
            write_run(folder, [CALL, slow], load=load, repeat=repeat, system="per-model", seconds=180.0)
    return folder


@pytest.fixture(autouse=True)
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """What `publish` writes to."""
    found = (tmp_path / "README.md", tmp_path / "bench.md")
    for page in found:
        page.write_text(f"before\n{bench.START}\n{END}\nafter\n")
    monkeypatch.setattr(bench, "PAGES", found)
    monkeypatch.setattr(bench, "GLANCES", {})
    monkeypatch.setattr(bench, "PUBLISHED", tmp_path / "published")
    return found


def write_open_loop(folder: Path, load: str, *, gap_s: float, latencies: dict[str, float], repeat: int = 0) -> None:
    """Twenty sessions of one call, one every `gap_s`; how long each takes, by system."""
    for system, latency_s in latencies.items():
        one = {"calls": 1, "planned_calls": 1, "latency_s": latency_s}
        rows = [row | {"session": f"s-{n}", "at": gap_s * n} for n in range(20) for row in (CALL, SESSION)]
        write_run(folder, [row | one for row in rows], load=load, system=system, repeat=repeat)


def test_the_summary_is_of_the_highest_load(results: Path, pages: tuple[Path, Path]) -> None:
    bench.publish(results)
    text = pages[0].read_text()
    assert text.startswith("before\n") and text.endswith("after\n")  # noqa: PT018
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| | | shared | per-model | shared against per-model |",
        "| reflexion, 12 at a time | sessions a minute | 1.00 (1.00 to 1.00) | 0.17 (0.17 to 0.17) | "
        "6.00 (6.00 to 6.00) x |",
        "|  | goodput, calls a minute | 1.0 (1.0 to 1.0) | 0.3 (0.3 to 0.3) | 3.00 (3.00 to 3.00) x |",
        "|  | session p95, s | 20.0 (20.0 to 20.0) | >= 60.0 (60.0 to 60.0) | >= 3.00 (3.00 to 3.00) x |",
        "|  | prefix hit ratio | 0.900 (0.900 to 0.900) | 0.900 (0.900 to 0.900) |  |",
    ]


def test_the_page_has_every_load_in_order_and_the_ratios(results: Path, pages: tuple[Path, Path]) -> None:
    bench.publish(results)
    rows = [line for line in pages[1].read_text().splitlines() if line.startswith("| ")]
    of_each = [["| 4", "shared"], ["| 4", "per-model"], ["| 12", "shared"], ["| 12", "per-model"]]
    assert [row.split(" | ")[:2] for first in (1, 6, 11) for row in rows[first : first + 4]] == of_each * 3
    assert [rows[head] for head in (0, 5, 10)] == [
        "| sessions at a time | system | sessions a minute | goodput, calls a minute | session p95, s | "
        "of the possible speed | cut off |",
        "| sessions at a time | system | first token p50, s | p95 | p99 | s a token, mean | p50 | p95 | p99 |",
        "| sessions at a time | system | prefix hit ratio | at best | prefill tokens a session | "
        "KV moved a session, MB | peak KV, MB | busy cores |",
    ]
    assert "| 4 | shared | per-model | 3.00 (3.00 to 3.00) | 3.00 (3.00 to 3.00) | 3.00 (" in pages[1].read_text()


def test_the_vllm_with_adapters_is_compared_with_ours_that_has_them(results: Path, pages: tuple[Path, Path]) -> None:
    for system, seconds in (("shared-lora", 30.0), ("colocated-lora", 45.0)):
        one = WORKER | {"name": "w", "role": "both", "core": None, "cpu_s": 90.0}
        write_run(results, [CALL, SESSION], load="closed:12", system=system, seconds=seconds, workers=[one])
    bench.publish(results)
    head, row = [line for line in pages[0].read_text().splitlines() if line.startswith("| ")][:2]
    assert head == (
        "| | | shared | shared-lora | per-model | colocated-lora | shared against per-model | "
        "shared-lora against colocated-lora |"
    )
    assert row.endswith(" | 1.50 x |")
    assert "| 12 | shared | colocated-lora | " in pages[1].read_text()


IN_README = "bench-limits"
PUBLISHED = {
    "float32": bench.FLOAT32,
    "short-contexts": bench.SHORT_CONTEXTS,
    "repeats": bench.REPEATS,
    "both-cores": bench.BOTH_CORES,
    "limits": bench.LIMITS,
    "small-steps": bench.SMALL_STEPS,
}


FOLDERS = ("bench", "bench-epyc", *(f"bench-{name}" for name in PUBLISHED))


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_published_is_what_its_records_give(name: str) -> None:
    """Also when there are systems that it does not have. The page has the tables of all folders, README.md one."""
    folder = bench.ROOT / "docs" / "results" / name
    load_matrix(folder / "matrix.json")
    start = REAL["START"] if name == "bench" else bench.OWN_START.format(folder=name)
    runs = read_runs(folder, Slo())
    texts = {page: page.read_text() for page in REAL["PAGES"]}
    readme, page = REAL["PAGES"]
    assert [each for each in texts if start in texts[each]] == [readme] * (name == IN_README) + [page]
    assert f"{start}\n{bench.tables(runs)}\n{END}" in texts[page]
    if name == IN_README:
        assert f"{start}\n{bench.summary(runs)}\n{END}" in texts[readme]


def test_every_table_of_the_pages_is_checked() -> None:
    """One whose folder is not among those above would be of nobody knows which records."""
    known = {REAL["START"], *(bench.OWN_START.format(folder=name) for name in FOLDERS)}
    for page in REAL["PAGES"]:
        there = re.findall(r"^<!-- table: python -m experiments\.bench publish.*-->$", page.read_text(), re.MULTILINE)
        assert set(there) <= known
        assert len(there) == (1 if page.name == "README.md" else len(FOLDERS))


@pytest.mark.parametrize("page", list(REAL["GLANCES"]), ids=lambda page: page.name)
def test_machines_at_a_glance_are_as_their_records_say(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGES", "PUBLISHED", "GLANCES"):
        monkeypatch.setattr(bench, name, REAL[name])
    assert f"{bench.GLANCE_START}\n{bench.glance(page)}\n{END}" in page.read_text()
    headings = {_anchor(line) for line in REAL["PAGES"][1].read_text().splitlines() if line.startswith("#")}
    assert {anchor for _, anchor in bench.MACHINES.values()} <= headings
    assert set(bench.MACHINES) == set(FOLDERS)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip("# ").lower()).replace(" ", "-")


def test_a_glance_is_of_the_highest_load_beside_each_baseline(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "docs" / "glance.md"
    page.parent.mkdir()
    page.write_text(f"{bench.GLANCE_START}\n{END}\n")
    monkeypatch.setattr(bench, "GLANCES", {page: (["published"], True)})
    monkeypatch.setattr(bench, "MACHINES", {"published": ("a machine", "there")})
    write_run(results, [CALL, SESSION], load="closed:4", system="colocated", seconds=90.0)
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    write_open_loop(results, "poisson:0.2", gap_s=5.0, latencies={"shared": 300.0, "per-model": 300.0})
    bench.publish(results)  # leaves it in `published`, and writes the glance
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| a machine")]
    assert [(row[1], *row[2:6]) for row in rows] == [
        ("reflexion, 4 at a time", "3.00 (3.00 to 3.00)", "3.00 (3.00 to 3.00)", "1.50", "1.00"),
        ("reflexion, 12 at a time", "6.00 (6.00 to 6.00)", ">= 3.00 (3.00 to 3.00)", "-", "-"),
        ("reflexion, open loop, 6 arriving a minute", "-", "100.00", "-", "-"),
    ]
    assert rows[0][-1] == "[tables](../bench.md#there)"
    monkeypatch.setattr(bench, "GLANCES", {page: (["published"], False)})
    assert "open loop" not in bench.glance(page)


def test_matrices_of_published_folders_are_still_those() -> None:
    for name, matrix in PUBLISHED.items():
        assert load_matrix(bench.ROOT / "docs" / "results" / f"bench-{name}" / "matrix.json") == matrix
    assert load_matrix(bench.ROOT / "docs" / "results" / "bench" / "matrix.json") == bench.FULL


@pytest.mark.parametrize("matrix", [bench.FULL, bench.LIMITS, bench.LIMITS_MORE], ids=["full", "limits", "more"])
def test_open_loops_have_enough_sessions_to_say_what_was_kept_up_with(matrix: Matrix) -> None:
    opened = [run for run in runs(matrix) if isinstance(parse_arrivals(run.load), Poisson)]
    assert {run.workload.source for run in opened} == {"react", "reflexion", "tool_heavy"}
    assert {run.name: run.workload.sessions for run in opened if run.workload.sessions < FEWEST} == {}


def test_the_readme_opens_with_a_published_table() -> None:
    """`publish` leaves it alone where it has no place for one, so nothing else would say that it was lost."""
    readme, _ = REAL["PAGES"]
    assert bench.OWN_START.format(folder=IN_README) in readme.read_text()


def test_open_loops_have_tables_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    bench.publish(results)
    row = "| reflexion, open loop | kept up with, sessions arriving a minute | >= 6 (1.00) | < 6 (0.05) |  |"
    assert row in pages[0].read_text()
    text = pages[1].read_text()
    assert "| reflexion, 4 models | >= 6 (1.00) | < 6 (0.05) |" in text
    closed, opened = text.index("**reflexion**"), text.index("**reflexion, open loop**")
    parts = {"closed": text[closed:opened], "open": text[opened:]}
    assert "| sessions at a time | system | sessions a minute | goodput, calls a minute |" in parts["closed"]
    assert "arriving" not in parts["closed"]
    assert (
        "| sessions arriving a minute | system | sessions a minute | arrivals a minute, as drawn | kept up |"
        in parts["open"]
    )
    assert "at a time" not in parts["open"]
    assert "| 6 | per-model | " in parts["open"]


def test_records_costs_and_plot_are_kept_beside_the_tables(results: Path) -> None:
    bench.publish(results)
    published = bench.PUBLISHED
    for plot in bench.PLOTS:
        assert (published / plot).read_bytes().startswith(b"\x89PNG")
    assert (published / "costs.json").read_text() == (results / "costs.json").read_text()
    copied = sorted(file.name for file in (published / "runs").iterdir())
    assert copied == sorted(file.name for file in (results / "runs").iterdir())
    bench.publish(published)  # from what is there


def test_runs_of_further_folders_stand_in_place_of_those_of_the_same_cell(
    results: Path, pages: tuple[Path, Path], tmp_path: Path
) -> None:
    others = tmp_path / "together"
    others.mkdir()
    for system, latency_s in (("shared", 5.0), ("colocated", 10.0)):
        write_run(others, [CALL, SESSION | {"latency_s": latency_s}], load="closed:12", system=system)
    bench.publish(results, [others])
    row = next(line for line in pages[0].read_text().splitlines() if "session p95" in line)
    assert row.startswith("|  | session p95, s | 12.5 (5.0 to 20.0) | >= 60.0 (60.0 to 60.0) | 10.0 |")
    assert len(list((bench.PUBLISHED / "runs").iterdir())) == len(list((results / "runs").iterdir())) + 2
    before = pages[0].read_text()
    for file in (others / "runs").glob("shared*.json"):
        file.write_text(file.read_text().replace('"a processor"', '"another"'))
    with pytest.raises(UserError, match="several kinds of processor: a processor, another"):
        bench.publish(results, [others])
    with pytest.raises(UserError, match="no run has ended"):
        bench.publish(results, [tmp_path / "nothing"])
    assert pages[0].read_text() == before


def test_runs_in_float32_have_a_table_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    bench.publish(results)
    readme, table = (page.read_text() for page in pages)
    folder = f"bench-{results.name}"
    for file in (results / "runs").glob("*.json"):
        file.write_text(file.read_text().replace('"bfloat16"', '"float32"'))
    for page, text in zip(pages, (readme, table), strict=True):
        page.write_text(f"{text}\n{bench.OWN_START.format(folder=folder)}\n{END}\n")
    bench.publish(results)
    for page, text in zip(pages, (readme, table), strict=True):
        assert page.read_text().startswith(text)
    assert "| sessions a minute |" in pages[0].read_text().removeprefix(readme)
    assert "| 12 | shared | per-model | " in pages[1].read_text().removeprefix(table)
    others = bench.PUBLISHED.with_name(folder)
    assert (others / "costs.json").exists()
    assert len(list((others / "runs").iterdir())) == len(list((results / "runs").iterdir()))


def test_runs_of_another_matrix_have_a_table_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    other = results.rename(results.with_name("others"))
    (other / "matrix.json").write_text(bench.MODELS.model_dump_json())
    with pytest.raises(UserError, match="are missing"):
        bench.publish(other)
    pages[1].write_text(pages[1].read_text() + f"{bench.OWN_START.format(folder='bench-others')}\n{END}\n")
    readme, table = (page.read_text() for page in pages)
    bench.publish(other)
    assert pages[0].read_text() == readme
    assert pages[1].read_text().startswith(table.split(bench.OWN_START.format(folder="bench-others"))[0])
    assert "| 12 | shared | per-model | " in pages[1].read_text()
    assert not bench.PUBLISHED.exists()
    bench.publish(bench.PUBLISHED.with_name("bench-others"))  # from what is there


def test_runs_in_float32_without_a_place_for_their_table_are_not_copied(results: Path) -> None:
    for file in (results / "runs").glob("*.json"):
        file.write_text(file.read_text().replace('"bfloat16"', '"float32"'))
    with pytest.raises(UserError, match="are missing"):
        bench.publish(results)
    assert not bench.PUBLISHED.with_name(f"bench-{results.name}").exists()


def test_a_page_without_marks_is_refused_and_the_readme_left_alone(results: Path, pages: tuple[Path, Path]) -> None:
    readme, page = pages
    written = page.read_text()
    page.write_text("nothing")
    before = readme.read_text()
    with pytest.raises(UserError, match="are missing"):
        bench.publish(results)
    assert readme.read_text() == before
    page.write_text(written)
    readme.write_text("nothing")
    bench.publish(results)
    assert readme.read_text() == "nothing"
    assert page.read_text() != written


def test_what_is_incomplete_replaces_nothing(results: Path, tmp_path: Path) -> None:
    bench.publish(results)
    (results / "costs.json").unlink()
    with pytest.raises(UserError, match="bench calibrate"):
        bench.publish(results)
    with pytest.raises(UserError, match="no run has ended"):
        bench.publish(tmp_path / "nothing")
    assert list((bench.PUBLISHED / "runs").iterdir())


@pytest.mark.parametrize(("what", "longest"), [("short", bench.SHORT_PROMPT), ("full", None), ("float32", None)])
def test_long_prompts_are_left_out_where_there_is_no_time(
    what: str, longest: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(bench, "measure", lambda *given: asked.extend(given) or 0)
    monkeypatch.setattr("sys.argv", ["bench", what, "--output", str(tmp_path)])
    assert bench.main() == 0
    assert asked[1:] == [tmp_path, longest]


def test_an_open_loops_summary_is_of_the_highest_load_that_shared_kept_up_with(
    results: Path, pages: tuple[Path, Path]
) -> None:
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    write_open_loop(results, "poisson:0.2", gap_s=5.0, latencies={"shared": 300.0, "per-model": 300.0})
    bench.publish(results)
    text = pages[0].read_text()
    assert "| reflexion, open loop | kept up with, sessions arriving a minute | 6 (1.00) | < 6 (0.05) |  |" in text
    assert "| reflexion, open loop, 6 arriving a minute | goodput, calls a minute | 20.0 | 0.0 |  |" in text
    assert "|  | session p95, s | 3.0 | 300.0 | 100.00 x |" in text
    assert "12 arriving" not in text


def test_an_open_loop_is_named_by_the_arrivals_that_shared_met(results: Path, pages: tuple[Path, Path]) -> None:
    """In the middle of its repeats, of which others may have fewer."""
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 3.0, "colocated": 3.0})
    write_open_loop(results, "poisson:0.1", gap_s=7.5, latencies={"shared": 3.0}, repeat=1)
    bench.publish(results)
    text = pages[0].read_text()
    assert "| reflexion, open loop, 7 arriving a minute | goodput, calls a minute | 20.0 (20.0 to 20.0) |" in text
    assert "|  | session p95, s | 3.0 (3.0 to 3.0) |" in text


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

    monkeypatch.setattr(bench, "prepare_base", lambda folder: folder)
    for each in (calibrate, run, write_report):
        monkeypatch.setattr(bench, each.__name__, each)
    for _ in range(2):  # what is measured is not measured again
        assert bench.measure((bench.LIMITS, bench.LIMITS_MORE), tmp_path / "limits", None) == 0
    assert measured == [("shared", "colocated", "shared-lora", "per-model")]
    folders = (tmp_path / "limits", tmp_path / "limits-more")
    assert played == [(bench.LIMITS.systems, folders[0]), (bench.LIMITS_MORE.systems, folders[1])] * 2
    assert reported == [True] * 4
