"""Held-out items: rows of a JSONL file, each a prompt and what is expected of the answer.

    {"prompt": "text" or [messages], "expected": anything, ...}
    {"prompt": ..., "completion": "text" or [one assistant message], ...}
    {"messages": [messages, the last of them the assistant's], ...}

The last two are TRL's: the completion is the expected answer, or its `tool_calls` are, where it has no text or the
scorer compares calls. `tools` are the functions that a chat request offers (a list, or its JSON text) and
`chat_template_kwargs` what it tells the chat template, both as in the rows of training; any other field is for the
scorer (`setup` for sql, `tests` for python, which needs no expected answer).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefillshare.errors import UserError
from prefillshare.json_lines import lines_of
from prefillshare.tools import read_tools

Message = dict[str, Any]


class BadField(Exception):
    """What is wrong with one field of a row. Who knows the file and the line makes a UserError of it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"field {name!r}: {problem}")


@dataclass(frozen=True, slots=True)
class Item:
    """One held-out call. `line` is its line in the file and identifies it; `fields` is what the scorer may ask for.

    `template_kwargs` are the arguments that the chat template gets beside messages and tools. A prompt of text has no
    use for them.
    """

    prompt: str | list[Message]
    expected: Any
    tools: list[dict[str, Any]] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    line: int = 0
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """A field that holds one text or several. Raises BadField when it is missing or something else."""
        value = self.fields.get(name)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BadField(name, f"this scorer needs a text or a list of texts, found {value!r:.80}")
        return texts


def read_items(file: Path, *, needs_expected: bool = True, expects_calls: bool = False) -> list[Item]:
    """All rows of the file, in its order.

    Without `needs_expected` a row may lack it, and a completion: it is None. With `expects_calls` the calls of an
    assistant message are what is expected, and not the text beside them.

    Raises:
        UserError: an unreadable file, no rows, or a row that cannot be used, by file, line and field.
    """
    items = []
    for line, row in _rows(file):
        try:
            items.append(_item(row, line, needs_expected, expects_calls))
        except BadField as problem:
            raise UserError(f"{file}, line {line}, {problem}") from None
    if not items:
        raise UserError(f"{file}: no rows; expected one JSON object a line")
    return items


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for line, content in lines_of(file):
            yield line, _row(content, f"{file}, line {line}")
    except OSError as error:
        raise UserError(f"dataset_name: cannot read {file}: {error.strerror}") from None


def _row(content: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    return row


def _item(row: dict[str, Any], line: int, needs_expected: bool, expects_calls: bool) -> Item:
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        prompt: str | list[Message] = messages[:-1]
        expected: Any = _answer(messages[-1], "messages", expects_calls)
        if not prompt:
            raise BadField("messages", "only one message; a row needs a prompt and the assistant's answer")
    else:
        prompt = _prompt(row)
        expected = row["expected"] if "expected" in row else _completion(row, needs_expected, expects_calls)
    known = {"messages", "prompt", "expected", "completion", "tools", "chat_template_kwargs"}
    fields = {key: row[key] for key in row.keys() - known}
    return Item(prompt, expected, _tools(row), fields, line, _template_kwargs(row))


def _prompt(row: dict[str, Any]) -> str | list[Message]:
    prompt = row.get("prompt")
    if prompt is None:
        found = ", ".join(map(repr, row)) or "no fields"
        raise BadField("prompt", f"missing; a row has 'prompt' and 'expected' (found {found})")
    if isinstance(prompt, str):
        if not prompt:
            raise BadField("prompt", "the prompt is empty")
        return prompt
    return _messages(prompt, "prompt")


def _completion(row: dict[str, Any], is_needed: bool, expects_calls: bool) -> str | None:
    completion = row.get("completion")
    if completion is None:
        if not is_needed:
            return None
        raise BadField("expected", "missing, and there is no 'completion' to take in its place")
    if isinstance(completion, str):
        return completion
    messages = _messages(completion, "completion")
    if len(messages) != 1:
        raise BadField("completion", f"expected one assistant message, found {len(messages)} messages")
    return _answer(messages[0], "completion", expects_calls)


def _answer(message: Message, name: str, expects_calls: bool) -> str:
    if message["role"] != "assistant":
        raise BadField(name, f"the last message must be the assistant's, found role {message['role']!r}")
    content, calls = message.get("content"), message.get("tool_calls")
    if not content and calls is None:
        raise BadField(name, "the assistant's answer is empty, and there are no 'tool_calls' in its place")
    return json.dumps(calls) if not content or (calls and expects_calls) else content


def _tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    try:
        return read_tools(row.get("tools"))
    except ValueError as error:
        raise BadField("tools", str(error)) from None


def _template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    kwargs = row.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise BadField("chat_template_kwargs", f"expected an object, found {kwargs!r:.80}")
    return kwargs


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadField(name, f"expected a list of messages, found {value!r:.80}")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadField(name, f"a message needs a 'role', found {message!r:.80}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise BadField(name, f"a message needs the text 'content' or 'tool_calls', found {message!r:.80}")
    return value
