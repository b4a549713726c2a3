import asyncio
import io
import os
import signal
import time
from pathlib import Path

import aiohttp
import psutil
import pytest
from rich.console import Console

from prefillshare.bench import hosting
from prefillshare.bench.host import HostRequest
from prefillshare.bench.systems import Machine

READY = (
    '{"endpoints": {"m": "http://x"}, "api_key": "k", "workers": [], "pid": "PID", "dtype": "d", '
    '"kv_bytes_per_token": 2}'
)


def request(folder: Path) -> HostRequest:
    return HostRequest(system="shared", models=1, base=folder, folder=folder, machine=Machine())


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Has `hosted` run this in place of the host's module."""
    program = folder / "program"
    program.write_text(f"#!{hosting.sys.executable}\nimport os, sys, time\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(hosting.sys, "executable", str(program))


async def test_a_system_lasts_as_long_as_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, f"print({READY!r}.replace('PID', str(os.getpid())), flush=True)\nsys.stdin.read()")
    async with hosting.hosted(request(tmp_path), tmp_path / "log") as system:
        assert system.endpoints == {"m": "http://x"}
        assert psutil.pid_exists(system.pid)
        began = time.monotonic()
    assert time.monotonic() - began < 10  # it was asked to stop, not killed
    assert not psutil.pid_exists(system.pid)


async def test_why_it_did_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, """print('{"error": "no such base"}')""")
    with pytest.raises(hosting.HostFailed, match=r"^no such base$"):
        async with hosting.hosted(request(tmp_path), tmp_path / "log"):
            pytest.fail("it did not start")


async def test_a_host_that_dies_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "sys.exit('out of luck')")
    with pytest.raises(hosting.HostFailed, match=r"(?s)ended before it was ready.*out of luck"):
        async with hosting.hosted(request(tmp_path), tmp_path / "log"):
            pytest.fail("it did not start")


async def test_a_host_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "_STOP_S", 0.2)
    stand_in(tmp_path, monkeypatch, f"print({READY!r}.replace('PID', '1'), flush=True)\ntime.sleep(600)")
    began = time.monotonic()
    async with hosting.hosted(request(tmp_path), tmp_path / "log"):
        pass
    assert time.monotonic() - began < 10


async def test_a_base_that_is_none_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(hosting.HostFailed, match=r"has no \*\.safetensors weights"):
        async with hosting.hosted(request(tmp_path), tmp_path / "log"):
            pytest.fail("it did not start")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_what_a_signal_stopped_has_not_succeeded(number: signal.Signals, code: int) -> None:
    async def work() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(10)

    told = io.StringIO()
    assert await hosting.to_the_end(work(), Console(file=told), stopped="to be gone on with") == code
    assert "to be gone on with" in told.getvalue()


@pytest.mark.parametrize("error", [aiohttp.ClientError("no connection to 127.0.0.1:8401"), psutil.NoSuchProcess(99999)])
async def test_a_worker_that_is_gone_is_told_in_a_line(error: Exception) -> None:
    """Killed for want of memory, for instance, while another system started, or during a run."""

    async def work() -> None:
        raise error

    told = io.StringIO()
    assert await hosting.to_the_end(work(), Console(file=told), stopped="") == 1
    assert f"failed: a worker does not answer: {error}; its log is" in told.getvalue()
