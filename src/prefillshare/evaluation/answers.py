"""Answers on disk: one JSONL file a measurement, appended to as they come, so that an interrupted run goes on.

The first line says what the answers depend on. A file that says something else (other weights, other data) is begun
anew. Verdicts are not kept: they are made by the scorer of today, which takes no time beside generation.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prefillshare.files import write_whole


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to the item in `line`. `cut_off`: at max_new_tokens. `seconds`: its share of a batch's time."""

    line: int
    text: str
    seconds: float
    cut_off: bool


class AnswerFile:
    """A context manager: holds the file open, and closes it whole lines only."""

    def __init__(self, path: Path, depends_on: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known = {answer.line: answer for answer in _read(path, depends_on)}
        # Written again rather than appended to: a killed run may have left half a line at the end.
        lines = [depends_on, *map(asdict, self.known.values())]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._stream = path.open("a")

    def append(self, answer: Answer) -> None:
        self._stream.write(json.dumps(asdict(answer)) + "\n")
        self._stream.flush()
        self.known[answer.line] = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()


def _read(path: Path, depends_on: dict[str, Any]) -> list[Answer]:
    try:
        first, *rest = path.read_text().splitlines()
        if json.loads(first) != depends_on:
            return []
    except (OSError, ValueError):
        return []
    answers = []
    for line in rest:
        try:
            answers.append(Answer(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return answers
