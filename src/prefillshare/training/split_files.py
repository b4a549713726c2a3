"""Which files of a folder are a split's: as its README.md says, else by their names, in both as `datasets` does.

A Hub data set that was downloaded has such a README, whose front matter lists the files of each split under `configs`.
Without one, names decide (train.jsonl, test-00000-of-00002.parquet), and where no name has a split in it, all files
are for training.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import metadata_load

from prefillshare.errors import UserError

JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = ".parquet"

# Files that may hold rows, too, in a form that is not read.
_OTHER_ROWS = (
    ".csv", ".tsv", ".arrow", ".feather", ".xlsx", ".pkl", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".7z",
)  # fmt: skip
_README = "README.md"
_CONFIGS = re.compile(r"---\s*\n(?:(?!---).*\n)*?configs:")  # in the front matter


class _Splits(NamedTuple):
    """The patterns of each split's files, from `place` on. `told` in the README, they all have files."""

    place: Path
    patterns: dict[str, list[str]]
    told: bool


def files_of_split(folder: Path, split: str) -> list[Path]:
    """The files of the split, in the order in which they are read.

    Raises:
        UserError: no such split, a split with rows in files that are not read, or a README that cannot be followed.
    """
    place = folder.resolve()  # `datasets` tells the files of an absolute place, whose ".." it takes out as text
    splits = _told(folder, place) or _Splits(place, _by_name(folder, place), told=False)
    if split not in splits.patterns:
        raise no_split(folder, split, splits.patterns)
    found = {folder / file.relative_to(place) for file in _matching(folder, splits, split)}
    # A .json file may be about the data rather than data, so it is read only where there is nothing else.
    for suffixes in ((".jsonl", ".ndjson", PARQUET), (".json",)):
        if usable := sorted(file for file in found if file.suffix in suffixes):
            _require_no_others(folder, split, usable, found)
            return usable
    names = ", ".join(sorted(file.name for file in found))
    raise UserError(
        f"{folder}: no {', '.join(JSON_LINES)} or {PARQUET} file for split {split!r}, only {names}; convert them"
    )


def no_split(folder: Path, split: str, splits: Iterable[str]) -> UserError:
    return UserError(f"{folder}: no split {split!r}; it has {', '.join(map(str, splits))}")


def _require_no_others(folder: Path, split: str, usable: list[Path], found: set[Path]) -> None:
    """Leaving out rows that somebody put beside the others would be training on less than was given, without a word."""
    suffixes = (*JSON_LINES, PARQUET, *_OTHER_ROWS)
    others = sorted(file for file in found.difference(usable) if file.suffix.lower() in suffixes)
    if others:
        names = ", ".join(file.relative_to(folder).as_posix() for file in others)
        raise UserError(
            f"{folder}: split {split!r} also has {names}, which would not be read beside {usable[0].name}; convert "
            f"rows to .jsonl or {PARQUET}, or move what holds none out of the folder"
        )


def _by_name(folder: Path, place: Path) -> dict[str, list[str]]:
    from datasets import data_files  # slow to import, and only needed for folders

    try:
        return data_files.get_data_patterns(str(place))
    except FileNotFoundError:
        raise UserError(f"{folder}: no data files; expected {', '.join(JSON_LINES)} or {PARQUET} files") from None


def _told(folder: Path, place: Path) -> _Splits | None:
    """What the README says; None where it says nothing of files."""
    file = folder / _README
    if not file.is_file() or not _CONFIGS.match(file.read_text(encoding="utf-8", errors="replace")):
        return None
    from datasets import data_files
    from datasets.utils.metadata import MetadataConfigs

    try:
        front: Any = metadata_load(file)
        configs = MetadataConfigs.from_dataset_card_data(front or {})
        name = configs.get_default_config_name()
        if not configs:
            return None
        if name is None:
            raise UserError(
                f"{file}: it has several configs, {', '.join(configs)}, and none is the default; save the rows of one "
                "to a folder of its own"
            )
        config = configs[name]
        base = (place / (config.get("data_dir") or "")).resolve()
        if not base.is_relative_to(place):
            raise _not_of_folder(folder, config["data_dir"])
        if config.get("data_files") is None:
            return _Splits(base, _by_name(folder, base), told=False)
        return _Splits(base, data_files.sanitize_patterns(config["data_files"]), told=True)
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: cannot read in its front matter which files are which split's: {error}; correct `configs` there, "
            "or take it out and name files by split"
        ) from None


def _matching(folder: Path, splits: _Splits, split: str) -> Iterable[Path]:
    from datasets import data_files

    for pattern in splits.patterns[split]:
        if "://" in pattern or "::" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise _not_of_folder(folder, pattern)
        try:
            yield from map(Path, data_files.resolve_pattern(pattern, str(splits.place)))
        except FileNotFoundError:
            if splits.told:
                raise UserError(f"{folder / _README}: split {split!r} is {pattern}, and there is none") from None


def _not_of_folder(folder: Path, pattern: str) -> UserError:
    return UserError(f"{folder / _README}: it names {pattern}, and only files of the folder are read; copy them there")
