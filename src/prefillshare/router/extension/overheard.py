"""An answer as it went to the client, and from that the message that the client will send back in its next turn."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import Message, Send

from prefillshare.router import sse

MAX_BYTES = 2**20  # of an answer; of a longer one nothing is kept


class Overheard:
    """A `send` that keeps what it passes on. Nothing is parsed here, so that listening costs a stream nothing."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pieces: list[bytes] = []
        self._room = MAX_BYTES

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if self._room >= 0 and (piece := message.get("body")):
            self._pieces.append(piece)
            self._room -= len(piece)
            if self._room < 0:
                self._pieces.clear()

    def answer(self) -> bytes | None:
        """All of the body; None when it was too long to be kept."""
        return b"".join(self._pieces) if self._room >= 0 else None


def read_choice(answer: bytes, *, stream: bool) -> dict[str, Any] | None:
    """The only choice of an answer, a stream's put together: `message`, or `text` and perhaps `token_ids`.

    None when there are several: nobody knows which of them the conversation goes on with.
    """
    if not stream:
        choices = json.loads(answer)["choices"]
        return choices[0] if len(choices) == 1 else None
    return _put_together(_events(answer))


def _events(answer: bytes) -> Iterable[Mapping[str, Any]]:
    for event in answer.split(sse.SEPARATOR):
        data = sse.data_of(event)
        if data.startswith(b"{"):
            yield json.loads(data)


def _put_together(events: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    text: list[str] = []
    token_ids: list[int] = []
    tool_calls: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event.get("choices") or []:
            if part.get("index", 0) != 0:
                return None
            delta = part.get("delta") or {}
            text.append(part.get("text") or delta.get("content") or "")
            token_ids += part.get("token_ids") or []
            for piece in delta.get("tool_calls") or []:
                _add(tool_calls.setdefault(piece.get("index", 0), {}), piece)
    content = "".join(text)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tool_calls:
        message = {"role": "assistant", "content": content or None}
        message["tool_calls"] = [tool_calls[index] for index in sorted(tool_calls)]
    return {"message": message, "text": content, "token_ids": token_ids}


def _add(tool_call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """A stream names a tool call once and then sends its arguments in pieces."""
    for field in ("id", "type"):
        if piece.get(field):
            tool_call[field] = piece[field]
    function = tool_call.setdefault("function", {"name": "", "arguments": ""})
    for field, value in (piece.get("function") or {}).items():
        function[field] = function.get(field, "") + (value or "")
