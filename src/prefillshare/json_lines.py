"""The lines of a JSONL file, as all readers of rows count them."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers, from 1. They are read as they are asked for.

    A line feed ends a line and nothing else does: the texts of a row may hold other separators. The mark with which
    editors on Windows begin a file is no part of its first line.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            content = line.removeprefix(BOM_UTF8) if number == 1 else line
            if content.strip():
                yield number, content
