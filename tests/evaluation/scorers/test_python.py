import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS, confined
from prefillshare.evaluation.scorers.python import passes

score = SCORERS["python"]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of confined processes are made, and nobody else's."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def item(tests: object = "assert double(4) == 8") -> Item:
    return Item("question", None, fields={"tests": tests})


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("def double(x): return 2 * x", True),
        ("Sure:\n```python\ndef double(x):\n    return 2 * x\n```\nThat doubles.", True),
        ("def double(x):\n    print('debug')\n    return x + x\nif __name__ == '__main__':\n    input()", True),
        ("def double(x): return x", False),
        ("def double(x): return", False),
        ("def triple(x): return 3 * x", False),
        ("def double(x) return 2 * x", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("\x00", False),
        ("\ud800", False),
        ("", False),
    ],
)
def test_code_is_judged_by_the_tests(answer: str, right: bool) -> None:
    assert score(answer, item()) is right


def test_tests_may_come_in_pieces() -> None:
    pieces = ["assert double(4) == 8", "assert double(-1) == -2"]
    assert score("def double(x): return 2 * x", item(pieces))
    assert not score("def double(x): return 8", item(pieces))


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nasync def one(): return 1\nassert asyncio.run(one()) == 1",
        "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'x')",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int",
        "import os\nopen('a', 'w').write('x')\nos.mkdir('b')\nos.rename('a', 'b/a')",
        "import os\nopen(os.devnull, 'w').write('x')",
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder: open(folder + '/a', 'w').write('x')",
        "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'xy'); file.truncate(1)",
        "from os import *\ngetpid()",
        "import math, collections, itertools, re, json, random, decimal, datetime, subprocess, multiprocessing, socket",
    ],
)
def test_ordinary_code_runs(code: str) -> None:
    assert passes(code, "")


@pytest.mark.parametrize(
    "code",
    [
        "data = bytearray(1 << 33)",
        "data = []\nwhile True:\n    data.append('x' * 1_000_000)",
        "import os\nwhile True:\n    os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(os.getppid(), 0)",
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "open('{outside}', 'w')",
        "import os\nos.mkdir('{outside}')",
        "import os\nos.chdir('/tmp')\nopen('prefillshare-evil', 'w')",
        "import os\nos.remove('{existing}')",
        "import ctypes\nctypes.CDLL(None)",
        "with open('big', 'wb') as file:\n    while True:\n        file.write(b'x' * 1_000_000)",
    ],
)
def test_what_is_out_of_bounds_is_wrong_and_leaves_nothing(code: str, tmp_path: Path, scratch: Path) -> None:
    outside, existing = tmp_path / "written", tmp_path / "existing"
    existing.write_text("here")
    started = time.monotonic()
    assert not passes(
        code.replace("{outside}", str(outside)).replace("{existing}", str(existing)).replace("{port}", "9"), ""
    )
    assert time.monotonic() - started < 12
    assert not outside.exists()
    assert existing.read_text() == "here"
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(60)"])
def test_what_does_not_end_is_ended(code: str, scratch: Path) -> None:
    started = time.monotonic()
    assert not passes(code, "", seconds=1)
    assert time.monotonic() - started < 5
    assert os.listdir(scratch) == []


# What the audit hook does not see, so that it is the kernel's part of the confinement that is tested.
_KERNEL = {
    "writing": "import os\nos.mkfifo('{outside}')",
    "processes": "import threading\nthreading.Thread(target=print).start()",
    "network": "assert any('lo:' not in line for line in open('/proc/self/net/dev').readlines()[2:])",
}


@pytest.mark.skipif(not Path("/proc/self/net").exists(), reason="needs Linux")
@pytest.mark.parametrize("what", _KERNEL)
def test_the_kernel_confines_too(what: str, tmp_path: Path) -> None:
    outside = tmp_path / "written"
    tmp_path.chmod(0o777)  # open to the user that the process runs as
    assert not passes(_KERNEL[what].format(outside=outside), "")
    assert not outside.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    "code",
    [
        "import os\nfile = os.open('a', os.O_RDWR | os.O_CREAT)\n"
        "os.truncate(file, 3)\nos.utime(file)\nos.fchmod(file, 0o600)",
        "import os\nos.mkdir('b')\nb = os.open('b', os.O_RDONLY)\nos.close(os.open('a', os.O_CREAT, dir_fd=b))\n"
        "os.rename('a', 'c', src_dir_fd=b, dst_dir_fd=b)\nos.remove('c', dir_fd=b)",
        "import os, resource\nresource.prlimit(os.getpid(), resource.RLIMIT_CPU)",
    ],
)
def test_its_own_files_and_limits_may_be_reached_by_descriptor_and_number(code: str) -> None:
    assert passes(code, "")


# What the kernel does not confine everywhere, so that it is the audit hook's part that is tested.
_HOOK = {
    "chmod beneath": "os.chmod('existing', 0, dir_fd=there)",
    "chmod of a descriptor": "os.chmod(file, 0)",
    "fchmod": "os.fchmod(file, 0)",
    "fchown": "os.fchown(file, -1, -1)",
    "utime": "os.utime(file, (0, 0))",
    "ftruncate": "os.ftruncate(writable, 0)",
    "remove beneath": "os.remove('existing', dir_fd=there)",
    "rename from beneath": "os.rename('existing', 'taken', src_dir_fd=there)",
    "rename to beneath": "os.rename('own', 'written', dst_dir_fd=there)",
    "rename over": "os.rename('own', 'existing', dst_dir_fd=there)",
    "mkdir beneath": "os.mkdir('written', dir_fd=there)",
    "link beneath": "os.link('own', 'written', dst_dir_fd=there)",
    "symlink beneath": "os.symlink('own', 'written', dir_fd=there)",
    "write beneath": "os.open('existing', os.O_WRONLY | os.O_TRUNC, dir_fd=there)",
    "create beneath": "os.open('written', os.O_WRONLY | os.O_CREAT, dir_fd=there)",
    "out of a folder inside": "os.remove('../existing', dir_fd=here)",
    "a process by descriptor": "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "limits of a process": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "priority of a process": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 0)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("what", _HOOK)
def test_the_audit_hook_refuses_what_the_kernel_may_permit(what: str, tmp_path: Path) -> None:
    folder, existing = tmp_path / "folder", tmp_path / "existing"
    folder.mkdir()
    (folder / "own").touch()
    existing.write_text("here")
    before = existing.stat()
    program = (
        f"import os, resource, signal, sys\nsys.path.append({str(Path(confined.__file__).parent)!r})\nimport confined\n"
        "here, there, file = (os.open(path, os.O_RDONLY) for path in ('.', '..', '../existing'))\n"
        f"writable = os.open('../existing', os.O_WRONLY)\nconfined._refuse('.')\n{_HOOK[what]}"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert "PermissionError: " in run.stderr
    assert "[Errno" not in run.stderr  # which the kernel's refusals have
    after = existing.stat()
    assert (existing.read_text(), after.st_mode, after.st_mtime) == ("here", before.st_mode, before.st_mtime)
    assert sorted(os.listdir(tmp_path)) == ["existing", "folder"]


def test_a_pass_cannot_be_read_off_the_frames_that_called_the_code() -> None:
    code = (
        "import os, re, sys\nframe = sys._getframe(1)\nwhile frame:\n    held = [*frame.f_locals.values()]\n"
        "    held += [inner for each in held if isinstance(each, dict) for inner in each.values()]\n"
        "    for text in held:\n        if isinstance(text, str) and re.fullmatch('[0-9a-f]{32}', text):\n"
        "            for file in range(16):\n                try: os.write(file, text.encode())\n"
        "                except OSError: pass\n            os._exit(0)\n    frame = frame.f_back"
    )
    assert not passes(code, "assert False")


def test_an_answer_cannot_replace_the_tests_by_replacing_compile() -> None:
    assert not passes("import builtins\nbuiltins.compile = lambda *_: (lambda: None).__code__", "assert False")


def test_nothing_of_the_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "value")
    assert passes("import os", "assert 'SECRET_KEY' not in os.environ")


@pytest.mark.parametrize("tests", [None, 3, [], "assert double(4) =="])
def test_an_item_without_tests_is_refused(tests: object) -> None:
    with pytest.raises(BadField, match="field 'tests'"):
        score.check(item(tests))
