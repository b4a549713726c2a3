"""Kills process groups when the supervisor is gone, if need be by SIGKILL.

PR_SET_PDEATHSIG alone would not do: it reaches a child, not a child's children. The helper process runs this file as a
script, so its imports are the standard library's. The supervisor holds the other end of its standard input and writes
"+GROUP" and "-GROUP" lines; end of file means that the supervisor has ended, and every group still listed is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys


class Guard:
    """A helper process that outlives this one for a moment, to kill the groups this one can no longer end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def watch(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def stop(self) -> None:
        """Ends the helper; it kills whatever group it has not been told to forget."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process = None

    def _tell(self, line: str) -> None:
        assert self._process is not None, "start() comes first"
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: the mark remains as the second net
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
