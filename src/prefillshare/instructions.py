"""Where a prompt carries the instructions of a role, so that agents with different roles can share its KV.

KV is shared up to the first token that differs. Agents that work on one context but each start with a system message of
their own differ in the first tokens and share nothing. `behind_context` moves that message behind the context:

    in_place         [system: You write SQL.] [user: the schema] ...           every role has its own KV
    behind_context   [user: the schema, blank line, You write SQL.]            all roles share the schema's KV

The rule: messages of role `system` at the very front move, all other messages stay. What all roles have in common
therefore belongs into the first user message, or into a message of role `developer` (vLLM renders it as a system
message when the base's chat template does not know that role). Tools are rendered by the template, mostly in front of
everything: roles that are given different tools share little wherever their instructions stand.

The moved text becomes part of the last user message, because that is a form every chat template can render: many allow
a system message at the front only, and some insist that user and assistant take turns. Behind a tool's result or an
assistant's message it becomes a user message of its own: in a tool's result it would claim to come from the tool.

A module works with the placement that it was trained with, so the manifest records it and the router follows it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

Placement = Literal["in_place", "behind_context"]
Message = Mapping[str, Any]

_TEXT_PARTS = ("text", "input_text", "output_text")


def place_instructions(messages: Sequence[Message], placement: Placement) -> list[Message]:
    """The messages as they are rendered for a prompt. The argument and its messages are not changed.

    `messages` is what precedes the answer: the whole chat request, or a conversation up to the turn that is trained.
    Without a leading system message nothing changes, so doing it twice is doing it once.

    Raises:
        ValueError: a leading system message, or the user message that would take its text, has content that is
            neither text nor a list of parts.
    """
    if placement == "in_place":
        return list(messages)
    leading, context = split_instructions(messages)
    texts = [text for message in leading if (text := _text(message).strip())]
    if not texts:
        return context
    instructions = "\n\n".join(texts)
    if context and context[-1].get("role") == "user":
        last = context.pop()
        return [*context, {**last, "content": _with_text(last, instructions)}]
    return [*context, {"role": "user", "content": instructions}]


def split_instructions(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The messages that `behind_context` moves, and the others."""
    leading = list(takewhile(lambda message: message.get("role") == "system", messages))
    return leading, list(messages[len(leading) :])


def _text(message: Message) -> str:
    """The text of a system message. Parts are joined as vLLM joins them."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, str) else _part_text(part) for part in _parts(message)]
    return "\n".join(parts)


def _part_text(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise ValueError(f"the content of a system message must be text, found {part!r:.80}")
    return text


def _with_text(message: Message, text: str) -> object:
    """The content of a user message with `text` behind a blank line."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return f"{content}\n\n{text}" if content else text
    parts = list(_parts(message))
    last = parts[-1] if parts else None
    # Into the last part, not as one more: parts are joined with a line break, which a plain text does not have there.
    if isinstance(last, str):
        return [*parts[:-1], f"{last}\n\n{text}"]
    if isinstance(last, Mapping) and last.get("type", "text") in _TEXT_PARTS and isinstance(last.get("text"), str):
        return [*parts[:-1], {**last, "text": f"{last['text']}\n\n{text}"}]
    return [*parts, {"type": "text", "text": text}]


def _parts(message: Message) -> Iterable[object]:
    content = message["content"]
    if not isinstance(content, list):
        raise ValueError(
            f"the content of a {message['role']} message must be text or a list of parts, "
            f"found {type(content).__name__}"
        )
    return content
