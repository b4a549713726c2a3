"""The `tools` of a row of data: those that a chat request offers."""

import json
from typing import Any


def read_tools(value: object) -> list[dict[str, Any]] | None:
    """A list of objects, or its JSON text: TRL's way to keep schemas of many forms in one column. None when empty.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f"expected a list of tools, each an object, found {value!r:.80}")
    return value
