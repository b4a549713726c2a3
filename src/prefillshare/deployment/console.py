"""Standard error that may go away while a deployment serves: a closed terminal or pipe, a full disk."""

import contextlib
import sys
from typing import Any, TextIO, cast

from rich.console import Console


def lasting_console() -> Console:
    """Of standard error. What cannot be written there is lost, and ends neither a stop nor what still serves."""
    if not sys.stderr:  # it was closed before the start
        return Console(stderr=True)
    return Console(file=cast(TextIO, _Lossy(sys.stderr)))


class _Lossy:
    """`file` without its failures: rich would end the process on a closed pipe, also where it only writes log lines."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
