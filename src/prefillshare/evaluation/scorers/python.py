"""Code, by running the item's tests on it.

`tests` is Python source (or a list of pieces of it) that raises when the answer is wrong; it sees the names that the
answer defines. The answer may stand in a fence. Both run in one process of their own (confined.py) with the standard
library only, in an empty folder that is removed afterwards. What the process may use is bounded:

- 5 seconds of CPU and 15 by the clock, 512 MiB of address space, 8 MiB a file, 64 open files;
- no network: an empty network namespace where the kernel permits one, and sockets refused by an audit hook;
- no further processes or threads: RLIMIT_NPROC, under another user when this process is root's;
- no signals to other processes and no limits for them: an audit hook, and functions that are taken away;
- no writing outside its folder: Landlock on Linux from 5.13 on, and an audit hook.

The audit hook is there everywhere, the others where the kernel has them. The hook alone stops mistakes and ordinary
code, not an attack on the interpreter: score models that you distrust inside a container.

Verdicts are for models' answers, not for adversaries. Answer and tests share an interpreter, so code that sets out to
deceive the scorer can: it may change what the tests use, or find the proof of a pass in the process's memory.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers.text import unfenced

CLOCK_SECONDS = 15.0
_CONFINED = Path(__file__).with_name("confined.py").resolve()


def is_right(answer: str, item: Item) -> bool:
    return passes(unfenced(answer), "\n".join(item.texts("tests")))


def check(item: Item) -> None:
    _require_that_it_runs()
    for text in item.texts("tests"):
        try:
            compile(text, "tests", "exec")
        except (SyntaxError, ValueError) as error:
            raise BadField("tests", f"not Python: {error}") from None


@cache
def _require_that_it_runs() -> None:
    if not passes("", ""):
        raise UserError(
            f"scorer python: {sys.executable} -I -S {_CONFINED} does not run here, so every answer would be wrong; "
            "score on Linux or macOS with an interpreter that other users may execute"
        )


def passes(code: str, tests: str, *, seconds: float = CLOCK_SECONDS) -> bool:
    """Whether `tests` run to their end after `code`. Takes at most `seconds`; leaves no process and no file."""
    # The process proves with it that the tests ended: an exit code of 0 would only say that something called exit().
    proof = secrets.token_hex(16)
    try:
        request = json.dumps({"proof": proof, "code": code, "tests": tests}).encode()
    except UnicodeEncodeError:
        return False
    with tempfile.TemporaryDirectory(prefix="prefillshare-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", _CONFINED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"LANG": "C.UTF-8", "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(request, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode == 0 and output.decode(errors="replace") == proof
