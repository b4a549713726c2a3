"""Runs that are simulated with something changed."""

from pathlib import Path
from typing import Any

import pytest

from experiments.calibration import __main__ as command
from experiments.calibration import publish
from experiments.calibration.changes import Change, variants
from experiments.calibration.report import table_of_changes
from experiments.calibration.runs import compare
from experiments.section import END
from prefillshare.errors import UserError
from tests.experiments.calibration.made import made_up, played_by_simulator, write_simulated


@pytest.mark.parametrize(
    ("system", "change", "prefill", "decode"),
    [
        ("per-model", Change(kv=0.67), 16_448, 16_448),  # of 24,576, in whole blocks of 32
        ("per-model", Change(kv=2), 49_152, 49_152),
        ("per-model", Change(models=4), 12_288, 12_288),
        ("per-model", Change(models=4, kv=2), 24_576, 24_576),
        ("shared", Change(models=4), 49_152, 12_288),
        ("shared-lora", Change(models=4), 49_152, 49_152),
        ("colocated", Change(models=4), 24_576, 24_576),
    ],
)
def test_workers_divide_the_memory_that_there_is(
    tmp_path: Path, system: str, change: Change, prefill: int, decode: int
) -> None:
    measured = played_by_simulator(tmp_path, system, change=change).measured
    assert (measured.profile.kv_tokens, measured.profile.decode_kv_tokens) == (prefill, decode)
    assert len(measured.layout.models) == (change.models or 2)


def test_what_is_changed_is_simulated_and_what_was_measured_stays(tmp_path: Path) -> None:
    as_it_was = made_up(tmp_path, "colocated")
    for change in (Change(max_num_batched_tokens=64), Change(models=1)):
        run = compare(played_by_simulator(tmp_path, "colocated", change=change))
        assert run.measured == as_it_was.measured
        assert run.simulated["latency_p95_s"] != pytest.approx(as_it_was.simulated["latency_p95_s"], rel=0.01), change
    flow = played_by_simulator(tmp_path, "shared", change=Change(cached_first_s=15)).measured.flow
    assert flow is not None
    assert flow.cached_first_s == 15


def test_a_worker_without_room_for_a_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"per-model would have room for 6,144 tokens .* 8,192"):
        played_by_simulator(tmp_path, "per-model", change=Change(kv=0.25))


def test_fields_are_combined_and_one_system_may_have_its_own() -> None:
    found = variants(["kv=1.5", "kv=2", "colocated.models=3", "colocated.kv=4"])
    assert [each.title for each in found] == [
        "kv=1.5, colocated.models=3, colocated.kv=4",
        "kv=2, colocated.models=3, colocated.kv=4",
    ]
    assert found[1].of("shared") == Change(kv=2)
    assert found[1].of("colocated") == Change(kv=4, models=3)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["kw=2"], "--with kw=2: no field 'kw'; there are kv, models,"),
        (["kv"], "--with kv: Input should be a valid number"),
        (["kv=0"], "--with kv=0: Input should be greater than 0"),
        (["models=9"], "--with models=9: Input should be less than or equal to 8"),
        (["shared-lora.kv=2"], "--with shared-lora: no run of that system; there are per-model, shared"),
        (["kv=0.1"], "would have room for 2,432 tokens"),
    ],
)
def test_what_cannot_be_changed_is_refused(
    tmp_path: Path,
    page: Path,
    texts: list[str],
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for system in ("shared", "per-model"):
        write_simulated(tmp_path, system)
    monkeypatch.setattr(
        "sys.argv", ["calibration", str(tmp_path), *(word for text in texts for word in ("--with", text))]
    )
    assert command.main() == 2
    assert why in capsys.readouterr().err


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["calibration", *arguments])
    return command.main()


def test_ratios_are_shown_as_measured_as_simulated_and_with_every_value(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = page.parent / "results" / "bench-one"
    results.mkdir()
    for system in ("shared", "per-model", "colocated"):
        write_simulated(results, system, slower=2.0)
    arguments = ["--only", "shared-m2", "per-model", "--with", "kv=2", "--with", "kv=4"]
    page.write_text(f"{publish.START.format(arguments=' '.join(['docs/results/bench-one', *arguments]))}\n{END}\n")
    assert run_command(monkeypatch, str(results), *arguments, "--publish") == 0
    told = capsys.readouterr().out
    assert told.strip() in page.read_text()
    assert not (results / publish.PREDICTED).exists()
    rows = [line for line in told.splitlines() if "closed:2" in line]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["per-model", each] for each in ("as measured", "as simulated", "kv=2", "kv=4")
    ]
    for choice, why in ((["--only", "per-model"], "no run of `shared`"), (["--only", "closed"], None)):
        assert run_command(monkeypatch, str(results), *choice, "--with", "kv=2") == (2 if why else 0)
        assert (why or "") in capsys.readouterr().err
    assert run_command(monkeypatch, str(results), "--only", "closed") == 2
    assert "--only: only together with --with" in capsys.readouterr().err


def test_a_ratio_is_above_one_where_sharing_helps(tmp_path: Path) -> None:
    limit_s = 0.4 * made_up(tmp_path, "shared").measured["session_p95_s"]
    shared, slow = made_up(tmp_path, "shared"), made_up(tmp_path, "per-model", slower=2.0)
    figures: dict[str, Any] = {
        name: (shared.measured[name], slow.measured[name]) for name in ("session_p95_s", "calls_per_s")
    }
    row = table_of_changes([shared, slow], {}).splitlines()[2]
    times = figures["session_p95_s"][1] / figures["session_p95_s"][0]
    assert f"| as measured | {times:.2f} ({figures['session_p95_s'][0]:.3g}, " in row
    times = figures["calls_per_s"][0] / figures["calls_per_s"][1]
    assert f"| {times:.2f} ({figures['calls_per_s'][0]:.3g}, {figures['calls_per_s'][1]:.3g}) |" in row
    cut = made_up(tmp_path, "shared", limit_s=limit_s)
    assert f"| as measured | - ({limit_s:.3g}, " in table_of_changes([cut, slow], {})
