"""Files of JSON rows, checked against a model: what is wrong is said by file, line and field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from prefillshare.errors import UserError
from prefillshare.files import write_whole
from prefillshare.json_lines import lines_of

Row = TypeVar("Row", bound=BaseModel)


def read_rows(file: Path, model: type[Row]) -> Iterator[tuple[int, Row]]:
    """Every row with its line, empty lines left out.

    Raises:
        UserError: an unreadable file, or a row that is not one of the model, by file, line and field.
    """
    for line, text in _texts(file):
        try:
            yield line, model.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{file}, line {line}: {_problems(error)}") from None


def write_rows(file: Path, rows: Iterator[dict[str, object]]) -> None:
    """One object a line, in place of what the file held. Raises UserError when it cannot be written."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_relative_to("/dev") or file.is_fifo():  # /dev/stdout may be a file that others have begun
            with file.open("a", encoding="utf-8") as out:
                out.write(text)
        else:
            write_whole(file.resolve(), text)  # in the place of what a link leads to
    except OSError as error:
        raise UserError(f"{file}: cannot write it: {error.strerror}; give another file") from None


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    try:
        for line, content in lines_of(file):
            try:
                yield line, content.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{file}, line {line}: not UTF-8: {error}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read it: {error.strerror}") from None


def _problems(error: ValidationError) -> str:
    found = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        value = "" if problem["type"] in ("missing", "json_invalid") else f" (found {problem['input']!r:.80})"
        found.append(f"{f'field {field}: ' if field else ''}{problem['msg']}{value}")
    return "; ".join(found)
