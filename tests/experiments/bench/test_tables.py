import json
from pathlib import Path

from experiments.bench import places
from experiments.bench.publish import publish
from tests.experiments.bench.open_loop import write_open_loop


def rows_of(page: Path) -> list[str]:
    return [line for line in page.read_text().splitlines() if line.startswith("| ")]


def test_the_page_has_a_table_of_every_load_in_order_and_the_ratios(results: Path, pages: tuple[Path, Path]) -> None:
    publish(results)
    rows = rows_of(pages[1])
    of_each = [["| 4", "shared"], ["| 4", "per-model"], ["| 12", "shared"], ["| 12", "per-model"]]
    assert [row.split(" | ")[:2] for row in rows[1:5]] == of_each
    assert [rows[head] for head in (0, 5)] == [
        "| sessions at a time | system | sessions a minute | goodput, calls a minute | session p95, s | "
        "first token p95, s | s a token, p95 | prefix hit ratio | cut off | busy cores |",
        "| sessions at a time | so many times better is | than | sessions a minute | goodput | session p95 | "
        "prefill tokens | minutes apart |",
    ]
    assert "| 4 | shared | per-model | 3.00 (3.00 to 3.00) | 3.00 (3.00 to 3.00) | 3.00 (" in pages[1].read_text()
    assert rows[6].endswith(" | - |")  # these runs do not say when they began


def test_what_was_cut_off_is_told_where_something_was(results: Path, pages: tuple[Path, Path]) -> None:
    publish(results)
    row = next(row for row in rows_of(pages[1]) if row.startswith("| 12 | per-model"))
    assert " | 1 (1 to 1) | 0." in row
    for file in (results / "runs").glob("per-model*closed12*"):
        file.unlink()
    publish(results)
    assert "cut off" not in rows_of(pages[1])[0]


def test_ratios_say_how_many_minutes_lie_between_the_runs(results: Path, pages: tuple[Path, Path]) -> None:
    for file in (results / "runs").glob("*.json"):
        facts = json.loads(file.read_text())
        facts["environment"]["when"] = f"2026-11-29T{10 + (facts['system'] == 'shared')}:00:00+00:00"
        file.write_text(json.dumps(facts))
    publish(results)
    assert rows_of(pages[1])[-1].endswith(" | 60 |")


def test_a_file_beside_the_records_has_all_figures(results: Path) -> None:
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    publish(results)
    text = (places.PUBLISHED / places.ALL_FIGURES).read_text()
    assert text.startswith("# published: all figures\n`python -m experiments.bench publish docs/results/published`")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## The highest load that each system kept up with",
        "## reflexion",
        "## reflexion, open loop",
    ]
    assert "| reflexion, 4 models | >= 6 (1.00) | < 6 (0.05) |" in text
    for head in (
        "| sessions at a time | system | sessions a minute | goodput, calls a minute | session p95, s | "
        "of the possible speed | cut off |",
        "| sessions at a time | system | first token p50, s | p95 | p99 | s a token, mean | p50 | p95 | p99 |",
        "| sessions at a time | system | prefix hit ratio | at best | prefill tokens a session | "
        "KV moved a session, MB | peak KV, MB | busy cores |",
        "| sessions arriving a minute | system | sessions a minute | arrivals a minute, as drawn | kept up |",
    ):
        assert head in text
    assert "| 4 | shared | per-model | 3.00 (" in text


def test_open_loops_have_tables_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    publish(results)
    row = "| reflexion, open loop | kept up with, sessions arriving a minute | >= 6 (1.00) | < 6 (0.05) |  |"
    assert row in pages[0].read_text()
    text = pages[1].read_text()
    closed, opened = text.index("**reflexion**"), text.index("**reflexion, open loop**")
    parts = {"closed": text[closed:opened], "open": text[opened:]}
    assert "| sessions at a time | system | sessions a minute | goodput, calls a minute |" in parts["closed"]
    assert "arriving" not in parts["closed"]
    assert "| sessions arriving a minute | system | arrivals a minute, as drawn | kept up | goodput" in parts["open"]
    assert "at a time" not in parts["open"]
    assert "| 6 | per-model | " in parts["open"]
