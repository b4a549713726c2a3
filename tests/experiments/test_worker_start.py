"""Starts are compared pair by pair, and one that fails says why."""

import sys
from pathlib import Path

import pytest

from experiments import worker_start
from prefillshare.bench.systems import Machine, plan
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.engine.worker import plan_workers


def test_ratios_are_those_of_neighbouring_starts() -> None:
    seconds = (10.0, 5.0, 40.0, 30.0, 20.0, 12.0)
    records = [
        {"method": method, "wall_s": wall_s, "cpu_s": 2 * wall_s, "memory_mb": 1000.0}
        for method, wall_s in zip(3 * worker_start.METHODS, seconds, strict=True)
    ]
    lines = worker_start.table(records).splitlines()
    assert lines[2] == "| until it answers, s | 20.0 (10.0 to 40.0) | 12.0 (5.0 to 30.0) | 0.60 (0.50 to 0.75) |"
    assert lines[4].endswith("| 1.00 (1.00 to 1.00) |")


def test_a_worker_that_ends_is_told_with_the_end_of_its_log(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec, *_) = plan_workers(plan("shared", 1, checkpoint, tmp_path, Machine()))
    failing = [
        sys.executable,
        "-c",
        "import os; print(os.environ['VLLM_WORKER_MULTIPROC_METHOD'], 'no memory'); exit(3)",
    ]
    monkeypatch.setattr("prefillshare.deployment.supervision.worker_command", lambda _: failing)
    with pytest.raises(StartupFailed, match=r"did not start: exit code 3\nthe end of .*:\nfork no memory$"):
        worker_start.start(spec, "fork")
