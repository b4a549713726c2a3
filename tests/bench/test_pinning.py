import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from prefillshare.bench.pinning import give_way, pin_engine

# A server with a child of two threads, and a grandchild.
TREE = """
import subprocess, sys
sleep = "print(flush=True); import time; time.sleep(600)"
child = (
    "import subprocess, sys, threading, time;"
    "threading.Thread(target=time.sleep, args=(600,), daemon=True).start();"
    f"subprocess.Popen([sys.executable, '-c', {sleep!r}], stdout=subprocess.PIPE).stdout.readline();" + sleep
)
subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE).stdout.readline()
print(flush=True)
__import__("time").sleep(600)
"""


@pytest.fixture
def server() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_every_thread_of_the_engine_is_on_the_core_and_the_server_is_not(server: int) -> None:
    anywhere = os.sched_getaffinity(0)
    children = psutil.Process(server).children(recursive=True)
    tasks = [thread.id for child in children for thread in child.threads()]
    assert (len(children), len(tasks)) == (2, 3)
    core = max(anywhere)
    pin_engine(server, {core})
    assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset({core})}
    assert os.sched_getaffinity(server) == anywhere


def test_an_engine_may_have_several_cores(server: int) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    pin_engine(server, cores[:1])
    pin_engine(server, cores)
    tasks = [thread.id for child in psutil.Process(server).children(recursive=True) for thread in child.threads()]
    assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset(cores)}


@pytest.mark.parametrize(("niceness", "more"), [(5, 5), (100, 19)])
def test_every_thread_of_an_engine_gives_way_and_the_server_does_not(server: int, niceness: int, more: int) -> None:
    own = psutil.Process(server).nice()
    tasks = [thread.id for child in psutil.Process(server).children(recursive=True) for thread in child.threads()]
    give_way(server, niceness)
    assert {os.getpriority(os.PRIO_PROCESS, task) for task in tasks} == {min(own + more, 19)}
    assert psutil.Process(server).nice() == own


@pytest.mark.parametrize("beside", [set(), {0}])
def test_a_core_that_does_not_exist_is_an_error(server: int, beside: set[int]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        pin_engine(server, {1000, *beside})


def test_a_server_that_is_gone_is_an_error() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(psutil.NoSuchProcess):
        pin_engine(gone.pid, {0})
