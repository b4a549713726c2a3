"""Server-sent events, as OpenAI's API streams answers: one line of data each, and `[DONE]` after the last."""

SEPARATOR = b"\n\n"
DONE = b"[DONE]"

_DATA = b"data: "


def event(data: bytes) -> bytes:
    return _DATA + data + SEPARATOR


def data_of(event: bytes) -> bytes:
    """What an event says, which may still have its separator."""
    return event.removeprefix(_DATA)
