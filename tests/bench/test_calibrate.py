"""The command around the measurement: what it writes, and how it ends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from prefillshare.bench import calibrate as command
from prefillshare.bench import contention
from prefillshare.bench.costs import FILE
from prefillshare.bench.host import Hosted, HostRequest
from prefillshare.bench.hosting import HostFailed
from prefillshare.bench.matrix import Matrix, WorkloadConfig
from prefillshare.bench.systems import Machine
from tests.bench.fake_server import hosted_by
from tests.bench.test_costs import Caching
from tests.workloads.tokenisers import words

MACHINE = Machine(max_model_len=1024, max_num_seqs=4, decode_kv_tokens=8192)


def calibrate(output: Path, *, adapters: bool = True) -> int:
    systems = ("shared", "shared-lora") if adapters else ("shared",)
    matrix = Matrix(workloads=(WorkloadConfig(source="react"),), systems=systems, machine=MACHINE)
    return command.calibrate(matrix, Path("base"), output, Console(stderr=True, quiet=True))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Has every system be a fake server; holds the systems that were started, and how many models each has."""
    found = []

    @asynccontextmanager
    async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
        found.append((request.system, request.models))
        async with hosted_by(Caching(), models=request.models, role="decode") as system:
            yield system

    monkeypatch.setattr(command, "hosted", hosted)
    monkeypatch.setattr(command, "load_tokenise", lambda base: words)
    for name, value in {"_ROUNDS": 1, "_UNDER_WAY_S": 0.01}.items():
        monkeypatch.setattr(contention, name, value)
    return found


def test_costs_are_written_with_what_they_were_measured_with(started: list[tuple[str, int]], tmp_path: Path) -> None:
    assert calibrate(tmp_path) == 0
    assert started == [("shared", 1), ("shared-lora", 4), ("per-model", 2)]
    written = json.loads((tmp_path / FILE).read_text())
    assert written["cost"]["step_s"] >= 0
    assert written["environment"]["dtype"] == "float32"
    assert len(written["measured"]["alone"]) == 4 * 8
    assert len(written["measured"]["adapter_steps"]) == len(written["measured"]["steps"]) == 3
    assert written["adapter_decode_cost"]["step_s"] >= 0
    assert written["slowdown"]["prefill_beside_decode"] == 1


def test_adapters_are_measured_only_if_they_are_wanted(started: list[tuple[str, int]], tmp_path: Path) -> None:
    assert calibrate(tmp_path, adapters=False) == 0
    assert started == [("shared", 1), ("per-model", 2)]
    written = json.loads((tmp_path / FILE).read_text())
    assert written["measured"]["adapter_steps"] == []
    assert written["adapter_decode_cost"] is None


def test_workers_that_do_not_start_end_it_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
        raise HostFailed("no memory")
        yield

    monkeypatch.setattr(command, "hosted", hosted)
    monkeypatch.setattr(command, "load_tokenise", lambda base: words)
    assert calibrate(tmp_path) == 1
    assert not (tmp_path / FILE).exists()
