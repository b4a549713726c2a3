"""A forked engine computes with all of its threads, and holds nothing that is its parent's."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.engine import utils

from prefillshare.engine.command import METHOD_VARIABLE
from prefillshare.engine.forking import fork_engine

# A process of its own, since this one has threads already. Two threads, as on a worker that has no core to itself.
API_SERVER = """
import asyncio, os, signal, socket, stat
import torch
from vllm.v1.engine import utils
from prefillshare.engine.forking import fork_engine

def compute():
    return float((torch.ones(600, 600) @ torch.ones(600, 600)).add_(1).max())

def engine():
    assert torch.get_num_threads() == 2, torch.get_num_threads()
    assert compute() == 601
    assert len(os.listdir("/proc/self/task")) > 1  # OpenMP's threads
    assert stat.S_ISCHR(os.fstat(listening.fileno()).st_mode)
    assert stat.S_ISSOCK(os.fstat(pair[0].fileno()).st_mode)
    assert signal.set_wakeup_fd(-1) == -1
    print("computed")

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)  # sets the file that signals wake the loop by
    process = utils.get_mp_context().Process(target=engine, name="EngineCore")
    process.start()
    process.join(30)
    process.kill()  # one that waits for threads that it does not have
    process.join()
    assert process.exitcode == 0, process.exitcode

fork_engine()
compute()
with socket.create_server(("127.0.0.1", 0)) as listening:
    pair = socket.socketpair()
    asyncio.run(main())
    with socket.create_connection(listening.getsockname()):
        print("still listening")
"""


def test_it_computes_and_leaves_the_port_and_the_signals_to_its_parent() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", API_SERVER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["computed", "still listening"]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As in a worker's first process, which has one thread; what `fork_engine` changes is changed back."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(utils, "get_mp_context", utils.get_mp_context)
    monkeypatch.delenv(METHOD_VARIABLE, raising=False)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    yield monkeypatch
    torch.set_num_threads(threads)


def engine_is_forked() -> bool:
    return bool(utils.get_mp_context().Process.__module__ == fork_engine.__module__)


def test_it_is_forked_on_a_cpu_alone(before: pytest.MonkeyPatch) -> None:
    before.setattr(type(current_platform), "is_cpu", lambda self: False)
    fork_engine()
    assert not engine_is_forked()
    before.setattr(type(current_platform), "is_cpu", lambda self: True)
    fork_engine()
    assert engine_is_forked()


def test_beside_other_threads_it_is_not(before: pytest.MonkeyPatch) -> None:
    fork_engine()
    exporter = threading.Thread(target=print, name="exporter")
    before.setattr(threading, "enumerate", lambda: [threading.main_thread(), exporter])
    assert not engine_is_forked()


def test_nor_if_a_user_wants_vllms_way(before: pytest.MonkeyPatch) -> None:
    before.setenv(METHOD_VARIABLE, "spawn")
    fork_engine()
    assert not engine_is_forked()


def test_vllm_starts_its_engine_by_what_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise InterruptedError

    monkeypatch.setattr(utils, "get_mp_context", asked)
    config = cast(Any, SimpleNamespace(shutdown_timeout=0))
    with pytest.raises(InterruptedError):
        utils.CoreEngineProcManager(1, 0, 0, config, True, "", cast(Any, object), log_stats=False)
