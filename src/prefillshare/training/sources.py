"""Where rows of data come from: JSONL and Parquet files, and folders as `datasets` knows them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from prefillshare.errors import UserError
from prefillshare.json_lines import lines_of
from prefillshare.training.split_files import JSON_LINES, PARQUET, files_of_split, no_split

# A row's fields; other columns are not read.
FIELDS = ("messages", "prompt", "completion", "tools", "chat_template_kwargs")

_BATCH = 1000
_EXPECTED = "'prompt' and 'completion', or 'messages'"


class Row(NamedTuple):
    """`where` it is, as a person would look it up, and the row itself, or what makes it unreadable."""

    where: str
    content: dict[str, Any] | str


class Part(NamedTuple):
    """Rows that are read one way: a file, or the files of a saved split."""

    files: Sequence[Path]
    rows: Callable[[], Iterator[Row]]
    size: int  # number of rows, or an upper bound; for the progress bar


def open_source(source: Path, split: str) -> list[Part]:
    """The parts of a data source, opened as far as it takes to know its columns.

    Args:
        source: a JSONL or Parquet file; a folder written by `save_to_disk`; or a folder of JSONL and Parquet files, of
            which split_files.py says which are a split's.
        split: which split of a folder. A file is one split, whatever it is called.

    Raises:
        UserError: nothing there that can be read, no such split or rows of it in files that are not read, or a table
            without the columns of a row.
    """
    if source.is_file():
        return [_open_file(source)]
    if not source.is_dir():
        raise UserError(
            f"{source}: cannot read it: no such file or folder; for a data set of the Hub, save it first with "
            "`datasets.load_dataset(...).save_to_disk(folder)`"
        )
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return [_open_saved(source, split)]
    return [_open_file(file) for file in files_of_split(source, split)]


def require_splits(source: Path) -> None:
    """Raises UserError for a source without splits, of which every split would be the same rows."""
    if source.is_file() or (source / "state.json").is_file():
        raise UserError(
            f"dataset_name: {source} has no splits, so evaluation during training would be on the rows that are "
            "trained; give a folder with a train and a test file (train.jsonl, test.jsonl), or leave eval_strategy out"
        )


def digest(source: Path, split: str = "train") -> str:
    """What a data source holds now, for the manifest: sha256 of the file, or of the list of its files' digests.

    Raises:
        UserError: as for `open_source`.
    """
    return files_digest(source, [file for part in open_source(source, split) for file in part.files])


def files_digest(source: Path, files: Iterable[Path]) -> str:
    """As `digest`, of files that are known already."""
    digests = {file: _sha256(file) for file in files}
    if source in digests:
        return f"sha256:{digests[source]}"
    lines = sorted(f"{digests[file]}  {file.relative_to(source).as_posix()}\n" for file in digests)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _open_file(file: Path) -> Part:
    try:
        if file.suffix in JSON_LINES:
            with file.open("rb") as lines:
                return Part([file], lambda: _json_rows(file), sum(1 for _ in lines))
        if file.suffix == PARQUET:
            table = parquet.ParquetFile(file)
            columns = _known_columns(file, table.schema_arrow.names)
            return Part(
                [file],
                lambda: _table_rows(str(file), table.iter_batches(_BATCH, columns=columns)),
                table.metadata.num_rows,
            )
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: cannot read it: {error}") from None
    raise UserError(f"{file}: expected a file that ends in {', '.join(JSON_LINES)} or {PARQUET}")


def _open_saved(folder: Path, split: str) -> Part:
    import datasets  # slow to import, and only needed for folders

    place = folder.resolve()  # `datasets` tells the files of an absolute place, whose ".." it takes out as text
    try:
        saved = datasets.load_from_disk(str(place))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{folder}: cannot read it: {error}") from None
    name = str(folder)
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise no_split(folder, split, saved)
        name, saved = f"{folder}, split {split!r}", saved[split]
    tables = saved.select_columns(_known_columns(folder, saved.column_names)).with_format("arrow")
    files = [folder / Path(file["filename"]).relative_to(place) for file in saved.cache_files]
    return Part(files, lambda: _table_rows(name, tables.iter(_BATCH)), len(saved))


def _known_columns(place: Path, columns: Sequence[str]) -> list[str]:
    if "messages" not in columns and not {"prompt", "completion"} <= set(columns):
        raise UserError(f"{place}: expected columns {_EXPECTED}, found {', '.join(map(repr, columns)) or 'none'}")
    return [column for column in columns if column in FIELDS]


def _json_rows(file: Path) -> Iterator[Row]:
    for number, line in lines_of(file):
        yield Row(f"{file}, line {number}", _parse(line))


def _parse(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with it."""
    try:
        text = line.decode()
        row = json.loads(text)
        if "\\u" in text:
            # "\ud800" alone is legal JSON but not text that a tokenizer takes.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error}"
    except UnicodeEncodeError as error:
        return f"not text: {error}"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"expected an object, found {type(row).__name__}"


def _table_rows(name: str, tables: Iterable[Any]) -> Iterator[Row]:
    """The rows of pyarrow tables or record batches."""
    number = 0
    for table in tables:
        for content in _contents(table):
            number += 1
            yield Row(f"{name}, row {number}", content)


def _contents(table: Any) -> Iterator[dict[str, Any] | str]:
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError as error:
        # Arrow does not look into strings until they are taken out, and then names no row.
        if len(table) == 1:
            yield f"not UTF-8: {error}"
        else:
            for place in range(len(table)):
                yield from _contents(table.slice(place, 1))
        return
    types = {field.name: field.type for field in table.schema}
    for row in rows:
        try:
            yield {key: _plain(value, types[key]) for key, value in row.items() if value is not None}
        except ValueError as error:
            yield f"not JSON: {error}"


def _plain(value: Any, kind: pyarrow.DataType) -> Any:
    """A value as it was before it was put into a table.

    In a table all messages have the same fields, and all calls of tools the same arguments: those that a message did
    not have are null. `datasets` keeps values of mixed types as JSON text.
    """
    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if pyarrow.types.is_struct(kind):
        fields = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
        return {key: _plain(inner, fields[key]) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and not pyarrow.types.is_map(kind):
        return [_plain(inner, kind.value_type) for inner in value]
    return value
