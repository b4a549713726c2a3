from pathlib import Path

from experiments.bench.publish import publish
from tests.experiments.bench.open_loop import write_open_loop


def test_the_page_has_every_load_in_order_and_the_ratios(results: Path, pages: tuple[Path, Path]) -> None:
    publish(results)
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


def test_open_loops_have_tables_of_their_own(results: Path, pages: tuple[Path, Path]) -> None:
    write_open_loop(results, "poisson:0.1", gap_s=10.0, latencies={"shared": 3.0, "per-model": 300.0})
    publish(results)
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
