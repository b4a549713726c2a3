"""YAML files as configuration: read, overridden field by field, and what is wrong with them in words."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from prefillshare.errors import UserError

# Of a field: keys and positions in lists, from the top of the file; empty: the whole file.
Location = tuple[int | str, ...]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError when it is unreadable or not a mapping."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], *, paths: Collection[str], example: str
) -> dict[str, Any]:
    """The mapping with `key=value` overrides put in; `section.key=value` reaches into a section.

    Args:
        paths: fields whose relative values start at the working directory, not at the file's folder.
        example: an override to show in an error.

    Raises:
        UserError: an override without `=`, with a value that is not YAML, or into something that is no section.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}: expected key=value, e.g. {example}")
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"override {override!r}: {name} is not a section")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
        section[last] = str(Path(text).absolute()) if key in paths and value is not None else value
    return content


def describe_validation_error(
    path: Path,
    error: ValidationError,
    *,
    is_secret: Callable[[Location], bool] | None = None,
    as_written: Callable[[Location], Location] | None = None,
) -> str:
    """One line a field: where it is in the file, what is wrong and what was found.

    Args:
        is_secret: whether what was found in a field is not shown; None: it is shown everywhere.
        as_written: where the file has a field that was validated in another place; None: all are where they were.
    """
    lines = [f"{path}: {error.error_count()} problem(s)"]
    for problem in error.errors(include_url=False):
        location = problem["loc"]
        field = ".".join(str(part) for part in (as_written(location) if as_written else location)) or "(file)"
        # What stands in a field that does not exist may be anything, an API key too; the field's name is enough. So may
        # a whole file.
        silent = problem["type"] in ("missing", "extra_forbidden") or not location
        shown = not (silent or (is_secret and is_secret(location)))
        found = f" (found {problem['input']!r})" if shown else ""
        lines.append(f"  {field}: {problem['msg']}{found}")
    return "\n".join(lines)
