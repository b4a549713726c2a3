"""Rows of a data file -> token ids of the prompt and of the response.

The row formats are TRL's, one JSON object a line, single-turn:

    {"prompt": "text", "completion": "text"}
    {"prompt": [messages], "completion": [one assistant message]}
    {"messages": [messages, the last of them the assistant's]}

Conversational prompts are rendered as a server renders a chat request (chat template, generation prompt), and the
response is what the template puts behind it, up to and including the end-of-sequence token.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefillshare.errors import UserError

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its response. Both have at least one token; the response ends in the end-of-sequence token."""

    prompt_ids: list[int]
    response_ids: list[int]


def read_examples(file: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> list[Example]:
    """All rows of a JSONL file, tokenised.

    Raises:
        UserError: a row that cannot be used, or is longer than `max_length` tokens, by file, line and field.
    """
    examples = []
    for line, row in _read_rows(file):
        try:
            example = _tokenise(row, tokenizer)
        except _BadRow as problem:
            raise UserError(f"{file}, line {line}, {problem}") from None
        length = len(example.prompt_ids) + len(example.response_ids)
        if max_length is not None and length > max_length:
            raise UserError(
                f"{file}, line {line}: the row has {length} tokens but max_length is {max_length}; "
                "shorten the row or raise max_length"
            )
        examples.append(example)
    if not examples:
        raise UserError(f"{file}: no rows; expected one JSON object a line")
    return examples


def render_prompt(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a chat request, as the server will see them."""
    return _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))


class _BadRow(Exception):
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r}: {problem}")


def _read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot read it: {error}") from None
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{file}, line {number}: not UTF-8: {error}") from None
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row


def _tokenise(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    if "messages" in row:
        messages = _messages(row, "messages")
        prompt, completion, field = messages[:-1], messages[-1:], "messages"
        if not prompt:
            raise _BadRow(field, "only one message; a row needs a prompt and the assistant's response")
    elif isinstance(row.get("prompt"), str):
        return _tokenise_text(row, tokenizer)
    else:
        prompt, completion, field = _messages(row, "prompt"), _messages(row, "completion"), "completion"
        if len(completion) != 1:
            raise _BadRow(field, f"expected one assistant message, found {len(completion)} messages")
    response = completion[0]
    if response["role"] != "assistant":
        raise _BadRow(field, f"the last message must be the assistant's, found role {response['role']!r}")
    if not response["content"].strip():
        raise _BadRow(field, "the response is empty")
    before = _render(tokenizer, prompt, add_generation_prompt=True)
    whole = _render(tokenizer, [*prompt, *completion], add_generation_prompt=False)
    return _split(tokenizer, field, _encode(tokenizer, before), _encode(tokenizer, whole))


def _tokenise_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    prompt, completion = row["prompt"], row.get("completion")
    if not prompt:
        raise _BadRow("prompt", "the prompt is empty")
    if not isinstance(completion, str):
        raise _BadRow("completion", f"expected text as in 'prompt', found {type(completion).__name__}")
    if not completion.strip():
        raise _BadRow("completion", "the response is empty")
    before: list[int] = tokenizer(prompt)["input_ids"]
    whole: list[int] = tokenizer(prompt + completion)["input_ids"]
    return _split(tokenizer, "completion", before, whole)


def _split(tokenizer: PreTrainedTokenizerBase, field: str, prompt_ids: list[int], whole: list[int]) -> Example:
    """Cuts `whole` behind the prompt, and the response behind its end-of-sequence token."""
    if whole[: len(prompt_ids)] != prompt_ids:
        raise _BadRow(
            field,
            "prompt and response do not tokenise separately, so the server would see other prompt tokens than "
            "training; start the response with a space, or use a chat template that ends the prompt in a marker",
        )
    eos = tokenizer.eos_token_id
    response_ids = whole[len(prompt_ids) :]
    end = response_ids.index(eos) if eos in response_ids else len(response_ids)
    return Example(prompt_ids, [*response_ids[:end], eos])


def _messages(row: dict[str, Any], field: str) -> list[Message]:
    messages = row.get(field)
    if messages is None:
        found = ", ".join(map(repr, row)) or "no fields"
        raise _BadRow(field, f"missing; a row has 'prompt' and 'completion', or 'messages' (found {found})")
    if not isinstance(messages, list) or not messages:
        raise _BadRow(field, f"expected a list of messages, found {messages!r:.80}")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise _BadRow(field, f"a message needs the texts 'role' and 'content', found {message!r:.80}")
    return messages


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, add_generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    return text


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template writes the special tokens itself.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
