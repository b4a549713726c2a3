import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prefillshare.bench.cells import by_models, size_of
from prefillshare.bench.figures import Figures, Slo, read_runs
from prefillshare.bench.plots import draw, plots
from prefillshare.bench.report import highest_kept_up, minutes_apart, ratio, write_report
from prefillshare.errors import UserError
from tests.bench.written import CALL, PREFILL, SESSION, write_run


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two systems, two repeats, two loads; `per-model` three times as slow, and prefilling 2.5 times as much."""
    for load in ("closed:1", "closed:4"):
        for repeat, factor in ((0, 1.0), (1, 1.1)):
            rows = [CALL, SESSION | {"latency_s": 20.0 * factor}]
            write_run(tmp_path, rows, load=load, repeat=repeat)
            slow = [CALL | {"latency_s": 9.0, "cached_tokens": 10}, SESSION | {"latency_s": 60.0 * factor}]
            worker = PREFILL | {"hit_tokens": 500.0}
            write_run(
                tmp_path, slow, load=load, repeat=repeat, system="per-model", seconds=180.0, workers=[worker, worker]
            )
    return tmp_path


def report_of(folder: Path) -> str:
    """The text, with pictures that are empty: painting them takes longest, and the tests of plots look at these."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: file.touch())
        return write_report(folder, Slo())[0].read_text()


def test_first_tokens_and_further_ones_are_told_by_their_percentiles(written: Path) -> None:
    text = report_of(written)
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    for name, shown in (("ttft s", "1.00 (1.00 to 1.00)"), ("tpot s", "0.200 (0.200 to 0.200)")):
        assert [rows[f"{name} p{share}"].split(" | ")[0] for share in (50, 95, 99)] == [shown] * 3
    assert "- goodput, calls a minute, shared against per-model:" not in text  # of which none is within the limits
    assert rows["goodput, calls a minute"] == "1.0 (1.0 to 1.0) | 0.0 (0.0 to 0.0)"


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        ([0.0, 10.0], [5.0, 5.0], "1.00 (0.00 to 2.00)"),
        ([10.0, 10.0], [5.0, 0.0], None),
        ([None, 10.0], [5.0, 5.0], None),
    ],
)
def test_a_ratio_leaves_no_repeat_out_in_which_a_value_is_zero_or_missing(
    written: Path, ours: list[float | None], theirs: list[float], shown: str | None
) -> None:
    name = "goodput, calls a minute"
    runs = []
    for run in read_runs(written, Slo()):
        if run.load == "closed:1":
            value = (ours if run.system == "shared" else theirs)[run.repeat]
            runs.append(replace(run, values=run.values | {name: value}))
    assert ratio(runs, "shared", "per-model", name) == shown


def test_costs_of_another_machine_are_told_of(written: Path) -> None:
    content = (
        '{"cost": {"step_s": 0.1, "token_s": 0.2}, "leg_s": 0, "link_bytes_per_s": 1, "environment": {"cores": 8}}'
    )
    (written / "costs.json").write_text(content)
    text = report_of(written)
    assert "Of 8 runs it is not said what is possible: costs.json was measured with cores 8 instead of 2." in text
    assert "of the possible speed" not in text
    (written / "costs.json").write_text(content.replace("8", "2"))
    assert "| of the possible speed |" in report_of(written)
    assert "it is not said" not in report_of(written)


def test_systems_stand_side_by_side_with_the_range_of_their_repeats(written: Path) -> None:
    text = report_of(written)
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [f"## reflexion, 4 models, {load} sessions at a time" for load in (1, 4)]
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    assert rows["session s p95"] == "21.0 (20.0 to 22.0) | 63.0 (60.0 to 66.0)"
    assert rows["prefix hit ratio"] == "0.900 (0.900 to 0.900) | 0.500 (0.500 to 0.500)"
    assert rows["sessions"] == "1 (1 to 1) | 1 (1 to 1)"  # what a p95 rests on
    assert rows["limit"] == "core 0 (prefill) | core 0 (prefill)"
    assert "a processor, 2 cores" in text
    assert "machine load before the runs 0.1 to 0.1" in text


def test_a_worker_that_stands_for_two_has_the_calls_of_two(written: Path) -> None:
    assert "at most 16 calls at a time in a worker. Mode" in report_of(written)
    write_run(written, [CALL, SESSION], system="colocated-lora", workers=[PREFILL | {"role": "both", "core": None}])
    text = report_of(written)
    assert "at most 16 calls at a time in a worker, 32 in that of colocated-lora. Mode" in text
    assert "shared-lora against colocated-lora" not in text
    assert "shared against colocated-lora" in text


def test_without_matplotlib_nothing_is_written(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.extras.is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"plots: .*matplotlib is not installed; pip install 'prefillshare\[bench\]'"):
        write_report(written, Slo())
    assert not (written / "report.md").exists()


def test_ratios_are_of_repeats_on_the_same_sessions(written: Path) -> None:
    text = report_of(written)
    assert "- session s p95, shared against per-model: 3.00 (3.00 to 3.00) times better" in text
    assert "- sessions a minute, shared against per-model: 3.00 (3.00 to 3.00) times better" in text
    assert "- prefill tokens a session, shared against per-model: 2.50 (2.50 to 2.50) times better" in text
    assert "\nRatios, on the same sessions:\n" in text  # these do not say when they began


def test_ratios_say_how_far_apart_their_runs_began(tmp_path: Path) -> None:
    def began(system: str, when: str, repeat: int = 0) -> None:
        write_run(tmp_path, [CALL, SESSION], system=system, repeat=repeat)
        file = tmp_path / "runs" / f"{system}-m4-closed4-r{repeat}.json"
        facts = json.loads(file.read_text())
        facts["environment"]["when"] = f"2026-11-29T{when}+00:00"
        file.write_text(json.dumps(facts))

    began("shared", "23:50:00")
    began("colocated", "23:48:00")
    assert "one began up to 2 minutes after the other:" in report_of(tmp_path)
    for repeat, (ours, theirs) in enumerate((("10:00:00", "11:05:00"), ("13:00:00", "12:30:00"), ("01:00:00", None))):
        began("shared", ours, repeat)
        if theirs:
            began("per-model", theirs, repeat)
    runs = read_runs(tmp_path, Slo())
    assert minutes_apart(runs, "shared", "per-model") == 65  # of the repeats that both have, the longest
    assert minutes_apart(runs, "shared", "shared-lora") is None


def test_what_is_only_known_to_be_longer_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path, [CALL, SESSION])
    cut = SESSION | {"calls": 1, "latency_s": 50.0}
    write_run(tmp_path, [CALL, SESSION, cut], system="per-model")
    text = report_of(tmp_path)
    assert "| session s p95 | 20.0 | >= 50.0 |" in text
    assert "- session s p95, shared against per-model: >= 2.50 times better" in text


def test_nothing_is_said_against_what_is_only_known_to_be_longer(tmp_path: Path) -> None:
    cut = SESSION | {"calls": 1, "latency_s": 50.0}
    write_run(tmp_path, [CALL, SESSION, cut])
    write_run(tmp_path, [CALL, SESSION], system="colocated")
    text = report_of(tmp_path)
    assert "session s p95, shared against" not in text
    assert "sessions a minute, shared against colocated" in text


def test_repeats_in_which_our_system_was_cut_off_are_not_left_out(tmp_path: Path) -> None:
    cut = SESSION | {"calls": 1, "latency_s": 50.0}
    for repeat in (0, 1):
        write_run(tmp_path, [CALL, SESSION, *[cut] * repeat], repeat=repeat)
        write_run(tmp_path, [CALL, SESSION], repeat=repeat, system="per-model")
    text = report_of(tmp_path)
    assert "session s p95, shared against" not in text
    assert "sessions a minute, shared against per-model" in text


def test_one_system_alone_has_no_ratios(tmp_path: Path) -> None:
    write_run(tmp_path, [CALL, SESSION])
    assert "times better" not in report_of(tmp_path)


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
    assert "<em>Possible</em> is what" in page
    assert "<code>bench calibrate</code>" in page
    assert "*" not in page.partition("</style>")[2]
    assert "<td>21.0 (20.0 to 22.0)</td>" in page


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """`shared` keeps up with two sessions a minute and with four, `per-model` with none, `colocated` with two."""
    for load, rate in (("poisson:0.0667", 1 / 15), ("poisson:0.0333", 1 / 30)):
        for system, a_minute in (("shared", 9.0), ("per-model", 1.0), ("colocated", 2.0)):
            # In order, each with one call, and so many of them a minute at most.
            at = [number / rate for number in range(20)]
            ended = [max(60 * (number + 1) / a_minute, time + 3.0) for number, time in enumerate(at)]
            rows = []
            for number, (begin, end) in enumerate(zip(at, ended, strict=True)):
                row = {"session": f"s-{number}", "at": begin, "latency_s": end - begin}
                rows += [CALL | row, SESSION | row | {"calls": 1, "planned_calls": 1}]
            write_run(tmp_path, rows, load=load, system=system, seconds=max(ended))
    return tmp_path


def test_the_highest_load_that_was_kept_up_with_is_told(opened: Path) -> None:
    text = report_of(opened)
    assert "| sessions arriving a minute | shared | per-model | colocated |" in text
    assert "| reflexion, 4 models | >= 4 (1.00) | < 2 (0.53) | 2 (1.00) |" in text
    assert "## reflexion, 4 models, 4 sessions arriving a minute" in text
    rows = [line for line in text.splitlines() if line.startswith("| kept up |")]
    assert rows == ["| kept up | 1.00 | 0.53 | 1.00 |", "| kept up | 1.00 | 0.28 | 0.53 |"]
    assert "*Kept up* is" in text


def test_closed_loops_say_nothing_of_keeping_up(written: Path) -> None:
    assert "kept up" not in report_of(written).lower()


def test_a_load_above_one_that_was_too_much_was_kept_up_with_by_chance() -> None:
    def runs(*kept: tuple[str, float | None]) -> list[Figures]:
        rest = {"limit": "", "bound_by": None, "at_least": frozenset(), "facts": {}}
        values = [{"kept up": value, "arrivals a minute": 0.9 * size_of(load)} for load, value in kept]
        return [
            Figures("", "shared", 4, "w", load, 0, known, **rest) for (load, _), known in zip(kept, values, strict=True)
        ]

    assert highest_kept_up(runs(("poisson:0.3", 0.99), ("poisson:0.1", 1.0), ("poisson:0.2", 0.8))) == "5.4 (1.00)"
    assert highest_kept_up(runs(("poisson:0.1", 0.5), ("poisson:0.1", 1.0), ("poisson:0.1", 0.98))) == ">= 5.4 (0.98)"
    assert highest_kept_up(runs(("poisson:0.1", None))) == "-"


def test_of_too_few_sessions_nothing_is_said_of_keeping_up(opened: Path) -> None:
    write_run(opened, [CALL, SESSION], load="poisson:0.5", models=2)
    text = report_of(opened)
    assert "| reflexion, 4 models | >= 4 (1.00) | < 2 (0.53) | 2 (1.00) |" in text
    assert "| reflexion, 2 models |" not in text
    for file in (opened / "runs").glob("*m4*"):
        file.unlink()
    assert "Highest load kept up with" not in report_of(opened)


def test_plots_are_of_one_kind_of_load(opened: Path) -> None:
    write_run(opened, [CALL, SESSION])
    assert [file.name for file in write_report(opened, Slo())[2:]] == [
        "reflexion-m4-closed.png",
        "reflexion-m4-poisson.png",
    ]


def test_one_load_is_drawn_as_bars_and_a_system_has_its_colour_whoever_is_missing(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure

    for system in ("shared", "per-model"):  # of five, others are missing before it and behind it
        write_run(tmp_path, [CALL, SESSION], system=system)
    axes = Figure().subplots()
    draw(axes, read_runs(tmp_path, Slo()), "sessions a minute")
    assert [patch.get_facecolor() for patch in axes.patches] == [to_rgba("C0"), to_rgba("C2")]
    assert [patch.get_center()[0] for patch in axes.patches] == pytest.approx([0, 1])  # with no gap for those
    assert axes.get_xlim() == pytest.approx((-0.6, 1.6))
    write_run(tmp_path, [CALL, SESSION], system="per-model", load="closed:9")
    axes = Figure().subplots()
    draw(axes, read_runs(tmp_path, Slo()), "sessions a minute")
    assert not axes.patches
    assert [to_rgba(line.get_color()) for line in axes.get_lines() if line.get_marker() == "o"] == [
        to_rgba("C0"),
        to_rgba("C2"),
    ]


def test_a_single_run_has_no_range(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    def ranges(*loads: str) -> int:
        axes = Figure().subplots()
        draw(axes, [run for run in read_runs(tmp_path, Slo()) if run.load in loads], "sessions a minute")
        return len(axes.collections)

    write_run(tmp_path, [CALL, SESSION])
    write_run(tmp_path, [CALL, SESSION], load="closed:9")
    assert ranges("closed:4") == ranges("closed:4", "closed:9") == 0
    write_run(tmp_path, [CALL, SESSION], repeat=1)  # as it happens, with the same figures
    assert ranges("closed:4") == ranges("closed:4", "closed:9") == 1
    assert ranges("closed:9") == 0


def test_open_loops_stand_where_their_arrivals_were_drawn(opened: Path) -> None:
    """The repeat that only one system has draws others; all systems of a load stand at one place."""
    from matplotlib.figure import Figure

    rows = [row | {"session": f"s-{n}", "at": 10.0 * n} for n in range(20) for row in (CALL, SESSION)]
    write_run(opened, rows, load="poisson:0.0667", repeat=1)
    runs = read_runs(opened, Slo())
    axes = Figure().subplots()
    draw(axes, runs, "session s p95")
    lines = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in lines] == [pytest.approx([2.0, 5.0])] * 3  # of 2 and 4, and of 4 and 6
    axes = Figure().subplots()
    draw(axes, [run for run in runs if run.load == "poisson:0.0667"], "session s p95")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5"]
    assert "## reflexion, 4 models, 4 sessions arriving a minute, 5 as drawn" in report_of(opened)


def test_what_plots_show(opened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, file, **options: shown.append([axes.get_title() for axes in figure.axes]),
    )
    write_run(opened, [CALL, SESSION])
    plots(read_runs(opened, Slo()), opened)
    rest = ["goodput, calls a minute", "session s p95", "ttft s p95", "tpot s p95", "prefix hit ratio"]
    rest += ["KV moved a session, MB", "peak KV, MB"]
    assert shown == [["sessions a minute", *rest], ["kept up", *rest]]


def test_plots_are_written_for_every_workload(written: Path) -> None:
    *_, plot = write_report(written, Slo())
    assert plot.name == "reflexion-m4-closed.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"![{plot.name}]({plot.name})" in (written / "report.md").read_text()


def test_a_load_of_several_numbers_of_models_is_also_drawn_against_these(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    for models in (1, 2, 4):
        write_run(tmp_path, [CALL, SESSION], models=models)
        write_run(tmp_path, [CALL, SESSION], models=models, system="per-model", seconds=60.0 * models)
    write_run(tmp_path, [CALL, SESSION], load="closed:9")  # of four models alone
    assert [file.name for file in write_report(tmp_path, Slo())[2:]] == [
        "reflexion-m1-closed.png",
        "reflexion-m2-closed.png",
        "reflexion-m4-closed.png",
        "reflexion-closed-4-models.png",
    ]
    axes = Figure().subplots()
    of_one_load = [run for run in read_runs(tmp_path, Slo()) if run.load == "closed:4"]
    draw(axes, of_one_load, "sessions a minute", by_models)
    lines = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 4], [1, 2, 4]]
    assert list(lines[1].get_ydata()) == pytest.approx([1.0, 0.5, 0.25])
    assert list(axes.get_xticks()) == [1, 2, 4]


def test_recorded_arrivals_stand_beside_drawn_ones(opened: Path) -> None:
    for file in list((opened / "runs").glob("*0.0667*")):
        file.write_text(file.read_text().replace('"poisson:0.0667"', '"trace:2"'))
    text = write_report(opened, Slo())[0].read_text()
    assert "| reflexion, as recorded, 4 models | >= 4 (1.00) | < 4 (0.28) | < 4 (0.53) |" in text
    assert "| reflexion, 4 models | >= 2 (1.00) | < 2 (0.53) | >= 2 (1.00) |" in text
    assert "## reflexion, 4 models, 2 times as fast as recorded" in text
    assert (opened / "reflexion-m4-trace.png").exists()


def test_runs_that_began_on_a_busy_system_are_told_of(tmp_path: Path) -> None:
    for repeat, requests in enumerate((0.0, 2.0)):
        write_run(tmp_path, [CALL, SESSION], repeat=repeat, idle={"waited_s": 60.0, "requests": requests})
    assert "to 0.1. 1 began before the one before was off the workers." in report_of(tmp_path)


def test_sessions_that_were_not_played_are_told_of(tmp_path: Path) -> None:
    workload = {"source": "own.jsonl", "sessions": 2, "max_calls": None, "seed": 0}
    for repeat in range(2):
        outgrown = {"left_out": 3, "shortened": 1}
        write_run(tmp_path, [CALL, SESSION], repeat=repeat, workload=workload, outgrown=outgrown)
    said = "Not played: workload 'own.jsonl', in 7,782 tokens of context: 3 sessions whose first call does not fit are"
    assert report_of(tmp_path).count(said) == 1
