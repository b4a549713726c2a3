import os
import tempfile
import time
from pathlib import Path

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS
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


def test_nothing_of_the_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "value")
    assert passes("import os", "assert 'SECRET_KEY' not in os.environ")


@pytest.mark.parametrize("tests", [None, 3, [], "assert double(4) =="])
def test_an_item_without_tests_is_refused(tests: object) -> None:
    with pytest.raises(BadField, match="field 'tests'"):
        score.check(item(tests))
