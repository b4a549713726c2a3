from html.parser import HTMLParser
from pathlib import Path

import pytest

from prefillshare.bench.figures import Slo
from prefillshare.bench.report import write_report
from tests.bench.written import CALL, PREFILL, SESSION, write_run


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two systems, two repeats, two loads; `per-model` three times as slow, and prefilling five times as much."""
    for load in ("closed:1", "closed:4"):
        for repeat, factor in ((0, 1.0), (1, 1.1)):
            rows = [CALL, SESSION | {"latency_s": 20.0 * factor}]
            write_run(tmp_path, rows, load=load, repeat=repeat)
            slow = [CALL | {"latency_s": 9.0}, SESSION | {"latency_s": 60.0 * factor}]
            worker = PREFILL | {"hit_tokens": 500.0}
            write_run(
                tmp_path, slow, load=load, repeat=repeat, system="per-model", seconds=180.0, workers=[worker, worker]
            )
    return tmp_path


def test_systems_stand_side_by_side_with_the_range_of_their_repeats(written: Path) -> None:
    text = write_report(written, Slo())[0].read_text()
    assert text.count("## reflexion, 4 models, closed:") == 2
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    assert rows["session s p95"] == "21.0 (20.0 to 22.0) | 63.0 (60.0 to 66.0)"
    assert rows["prefix hit ratio"] == "0.900 (0.900 to 0.900) | 0.500 (0.500 to 0.500)"
    assert rows["limit"] == "core 0 (prefill) | core 0 (prefill)"
    assert "a processor, 2 cores" in text
    assert "machine load before the runs 0.1 to 0.1" in text


def test_ratios_are_of_repeats_on_the_same_sessions(written: Path) -> None:
    text = write_report(written, Slo())[0].read_text()
    assert "- session s p95, shared against per-model: 3.00 (3.00 to 3.00) times better" in text
    assert "- sessions a minute, shared against per-model: 3.00 (3.00 to 3.00) times better" in text
    assert "- prefill tokens a session, shared against per-model: 10.00 (10.00 to 10.00) times better" in text
    assert "Ratios within one run" in text


def test_what_is_only_known_to_be_longer_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path, [CALL, SESSION])
    cut = SESSION | {"calls": 1, "latency_s": 50.0}
    write_run(tmp_path, [CALL, SESSION, cut], system="per-model")
    text = write_report(tmp_path, Slo())[0].read_text()
    assert "| session s p95 | 20.0 | >= 50.0 |" in text
    assert "- session s p95, shared against per-model: >= 2.50 times better" in text


def test_nothing_is_said_against_what_is_only_known_to_be_longer(tmp_path: Path) -> None:
    cut = SESSION | {"calls": 1, "latency_s": 50.0}
    write_run(tmp_path, [CALL, SESSION, cut])
    write_run(tmp_path, [CALL, SESSION], system="colocated")
    text = write_report(tmp_path, Slo())[0].read_text()
    assert "session s p95, shared against" not in text
    assert "sessions a minute, shared against colocated" in text


def test_one_system_alone_has_no_ratios(tmp_path: Path) -> None:
    write_run(tmp_path, [CALL, SESSION])
    assert "times better" not in write_report(tmp_path, Slo())[0].read_text()


def test_the_page_has_what_the_text_has_and_is_well_formed(written: Path) -> None:
    class Balance(HTMLParser):
        open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    page = write_report(written, Slo())[1].read_text()
    parser = Balance()
    parser.feed(page.removeprefix("<!doctype html>"))
    assert parser.open == []
    assert page.count("<table>") == 2
    assert "<td>21.0 (20.0 to 22.0)</td>" in page


def test_plots_are_written_for_every_workload(written: Path) -> None:
    *_, plot = write_report(written, Slo())
    assert plot.name == "reflexion-m4-closed.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"![{plot.name}]({plot.name})" in (written / "report.md").read_text()
