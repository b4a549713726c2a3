"""Whether the folder for logs can be written, before a run and at its start."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from prefillshare.deployment.events import FILE_NAME
from prefillshare.deployment.report import Finding
from prefillshare.errors import UserError

_WAY_OUT = "choose another log_dir"


def check_log_dir(log_dir: Path) -> Iterator[Finding]:
    """Goes by permissions, and writes nothing: the folder need not be there, but `serve` must be able to make it."""
    there = next(path for path in (log_dir.absolute(), *log_dir.absolute().parents) if os.path.lexists(path))
    events = log_dir / FILE_NAME
    if not there.is_dir():
        yield Finding("log_dir", "problem", f"{there} is not a folder; {_WAY_OUT}")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield Finding("log_dir", "problem", f"{there} may not be written; {_WAY_OUT}")
    elif events.is_dir() or (events.exists() and not os.access(events, os.W_OK)):
        yield Finding("log_dir", "problem", f"{events} may not be written; remove it, or {_WAY_OUT}")


@contextlib.contextmanager
def log_dir_or_error(log_dir: Path) -> Iterator[None]:
    """Inside, an OSError becomes a UserError."""
    try:
        yield
    except OSError as error:
        detail = f"{error.filename or log_dir} cannot be written: {error.strerror}"
        raise UserError(f"log_dir: {detail}; {_WAY_OUT}") from None
