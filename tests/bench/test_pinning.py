import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from prefillshare.bench.pinning import pin

# A process with two threads, and a child process.
TREE = """
import subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
code = "print(flush=True); import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def tree() -> Iterator[tuple[int, int]]:
    leader = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    yield leader.pid, child
    psutil.Process(child).kill()
    leader.kill()
    leader.wait()


def test_every_thread_of_every_process_is_on_the_core(tree: tuple[int, int]) -> None:
    leader, child = tree
    tasks = [thread.id for pid in tree for thread in psutil.Process(pid).threads()]
    assert len(tasks) == 3
    core = max(os.sched_getaffinity(0))
    pin(leader, core)
    assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset({core})}
    assert psutil.Process(child).cpu_affinity() == [core]


def test_a_core_that_does_not_exist_is_an_error(tree: tuple[int, int]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        pin(tree[0], 1000)


def test_a_process_that_is_gone_is_an_error() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(ProcessLookupError):
        pin(gone.pid, 0)
