"""What happens to the workers, as log lines and as JSON lines for programs."""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

LOG = logging.getLogger("prefillshare.deployment")
FILE_NAME = "events.jsonl"

EventKind = Literal[
    "started", "ready", "died", "restarting", "stopped", "leftovers", "serving", "draining", "removed", "added"
]
_WARNINGS: frozenset[EventKind] = frozenset({"died", "restarting", "leftovers"})


@dataclass(frozen=True, slots=True)
class Event:
    """`worker` is "" for an event of the whole deployment. `text` is for people, `facts` for programs."""

    kind: EventKind
    worker: str
    text: str
    facts: dict[str, Any]


class EventLog:
    """Appends every event to `events.jsonl` in the log folder and hands it to `logging`.

    Raises (on construction):
        OSError: the file cannot be opened. Later a full disk costs lines of the file, which the log tells, and no more.
    """

    def __init__(self, log_dir: Path) -> None:
        self._file: TextIO = (log_dir / FILE_NAME).open("a", buffering=1)

    def __call__(self, event: Event) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event.kind,
            **({"worker": event.worker} if event.worker else {}),
            **event.facts,
        }
        with self._telling_failures():
            self._file.write(json.dumps(line) + "\n")
        level = logging.WARNING if event.kind in _WARNINGS else logging.INFO
        LOG.log(level, "%s", f"{event.worker}: {event.text}" if event.worker else event.text)

    def close(self) -> None:
        with self._telling_failures():
            self._file.close()

    @contextlib.contextmanager
    def _telling_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            LOG.warning("%s: cannot be written: %s", self._file.name, error)
