"""Files that are there whole or not at all, whenever their writer is killed."""

import contextlib
import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Puts `text` (as UTF-8) in the place of what the file held; a reader sees the one or the other.

    Raises:
        OSError: it could not be written. What was there is still there, and nothing is left beside it.
    """
    scratch = file.with_name(f"{file.name}.{os.getpid()}.tmp")  # of this process alone
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
