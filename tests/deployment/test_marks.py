import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefillshare.deployment.marks import Leftover, end_leftovers, end_own, mark, marked

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


def test_the_mark_survives_a_changed_process_title(tmp_path: Path) -> None:
    pytest.importorskip("setproctitle", reason="comes with vLLM")
    program = "import setproctitle; setproctitle.setproctitle('VLLM::EngineCore'); print('up', flush=True); input()"
    supervisor = (
        "import os, subprocess, sys\n"
        "from prefillshare.deployment.marks import mark\n"
        f"child = subprocess.Popen([sys.executable, '-c', {program!r}], env=os.environ | mark({str(tmp_path)!r}))\n"
        "child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", supervisor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        (found,) = marked(str(tmp_path))
        assert found.supervisor_pid == parent.pid
        assert found.supervisor_alive
        assert marked(str(tmp_path / "another")) == []
        parent.communicate("\n")


def test_what_this_process_started_is_no_leftover(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, env=os.environ | mark(str(tmp_path))) as child:
        assert marked(str(tmp_path)) == []
        child.kill()


def test_the_last_net_takes_what_this_process_started_and_nothing_else(tmp_path: Path) -> None:
    own = subprocess.Popen(SLEEP, env=os.environ | mark(str(tmp_path)), start_new_session=True)
    other = subprocess.Popen(SLEEP, env=os.environ | mark(str(tmp_path / "another")))
    end_own(str(tmp_path))
    assert own.wait(10) == -9
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_runs_under_another_pid_namespace_counts_as_alive(tmp_path: Path) -> None:
    """Seen from the host, a container's supervisor has another pid than it says, and its own may be anybody's."""
    name = str(tmp_path)
    for supervisor in (1, os.getpid()):
        made_there = f"{supervisor}:0:4026539999:{name}"
        other = subprocess.Popen(SLEEP, env=os.environ | mark(name) | {"PREFILLSHARE_DEPLOYMENT": made_there})
        found = marked(name)
        ended = asyncio.run(end_leftovers(name))
        end_own(name)
        lives = other.poll() is None
        other.kill()
        other.wait()
        assert found == [Leftover(other.pid, supervisor, supervisor_alive=True, elsewhere=True)]
        assert (ended, lives) == ([], True)


def test_marks_of_earlier_versions_say_no_namespace(tmp_path: Path) -> None:
    name = f"{tmp_path}:1"
    supervisor, started, _ = mark(name)["PREFILLSHARE_DEPLOYMENT"].split(":", 2)
    former = [dict(mark(name), PREFILLSHARE_DEPLOYMENT=f"{said}:{name}") for said in ("1:0", f"{supervisor}:{started}")]
    left, own = (subprocess.Popen(SLEEP, env=os.environ | environment) for environment in former)
    assert asyncio.run(end_leftovers(name)) == [left.pid]
    assert own.poll() is None
    end_own(name)
    assert (left.wait(10), own.wait(10)) == (-9, -9)


def test_only_what_a_dead_supervisor_left_is_ended(tmp_path: Path) -> None:
    name = str(tmp_path)
    _, _, rest = mark(name)["PREFILLSHARE_DEPLOYMENT"].split(":", 2)
    orphan_of_the_dead = dict(mark(name), PREFILLSHARE_DEPLOYMENT=f"1:0:{rest}")  # pid 1, but started at another time
    left = subprocess.Popen(SLEEP, env=os.environ | orphan_of_the_dead)
    own = subprocess.Popen(SLEEP, env=os.environ | mark(name))
    assert asyncio.run(end_leftovers(name)) == [left.pid]
    assert left.wait(10) == -9
    assert own.poll() is None
    own.kill()
    own.wait()
