"""A data source -> examples, with every row that cannot be used found before training starts."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from prefillshare.errors import UserError
from prefillshare.instructions import Placement
from prefillshare.training.columns import bar_columns
from prefillshare.training.conversation import BadRow, Example, read_row
from prefillshare.training.sources import Row, files_digest, open_source
from prefillshare.training.store import ExampleStore

_REPORTED = 20
_SLOW_S = 2.0  # reading that takes longer shows a progress bar


class Skipped(NamedTuple):
    """A row that cannot be used: its file and line, or row, and the field with what is wrong."""

    where: str
    problem: str


@dataclass(frozen=True, slots=True)
class LoadedData:
    """What a data source holds. `rows` of it could be used; a row has one or more examples."""

    examples: Sequence[Example]
    rows: int
    skipped: list[Skipped]
    digest: str  # of the file's content, see sources.digest


def read_examples(
    source: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    skip_invalid: bool = False,
    split: str = "train",
    instructions: Placement = "in_place",
    show_progress: bool = True,
) -> LoadedData:
    """All rows of a data source, tokenised. See sources.open_source for what it can be, conversation.py for a row.

    Args:
        max_length: a row with an example of more tokens cannot be used. Nothing is ever cut.
        skip_invalid: leave out rows that cannot be used, and say so in `skipped`, instead of raising.
        split: of a folder.
        instructions: where prompts carry the instructions of a role.

    Raises:
        UserError: the source cannot be read, or has no row that can be used, or (without `skip_invalid`) any row that
            cannot: the first of them by file, line and field.
    """
    parts = open_source(source, split)
    examples = ExampleStore()
    skipped: list[Skipped] = []
    rows = 0
    with _bar_when_slow(sum(part.size for part in parts), shown=show_progress) as advance:
        for row in (row for part in parts for row in part.rows()):
            try:
                for example in _read(row, tokenizer, max_length, instructions):
                    examples.append(example)
            except BadRow as problem:
                skipped.append(Skipped(row.where, str(problem)))
            rows += 1
            advance()
    if not rows:
        raise UserError(f"{source}: no rows; expected one JSON object a line, or a table with rows")
    if skipped and not (skip_invalid and examples):
        way_out = "correct them" if skip_invalid else "correct them, or set skip_invalid=true to leave them out"
        raise UserError(
            f"{source}: {len(skipped)} of {rows} row{'s' * (rows > 1)} cannot be used; {way_out}{_listing(skipped)}"
        )
    digest = files_digest(source, [file for part in parts for file in part.files])
    return LoadedData(examples, rows - len(skipped), skipped, digest)


def _read(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int | None, instructions: Placement
) -> list[Example]:
    if isinstance(row.content, str):
        raise BadRow(None, row.content)
    examples = read_row(row.content, tokenizer, instructions)
    length = max(len(example.ids) for example in examples)
    if max_length is not None and length > max_length:
        problem = f"the row has {length} tokens but max_length is {max_length}; shorten the row or raise max_length"
        raise BadRow(None, problem)
    return examples


def _listing(skipped: list[Skipped]) -> str:
    lines = [f"\n  {where}: {problem}" for where, problem in skipped[:_REPORTED]]
    more = len(skipped) - _REPORTED
    return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")


@contextmanager
def _bar_when_slow(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    progress = Progress(*bar_columns(), console=Console(stderr=True), disable=not shown)
    task = progress.add_task("reading data", total=total)
    due = time.monotonic() + _SLOW_S

    def advance() -> None:
        progress.advance(task)
        if not progress.live.is_started and time.monotonic() >= due:
            progress.start()

    try:
        yield advance
    finally:
        progress.stop()
