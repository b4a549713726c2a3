"""A call: one answer that a client asks for, as the router's parts are handed it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefillshare.router.sessions import SessionKey

Endpoint = Literal["chat/completions", "completions"]


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted request. `body` is the client's, less what it says it does not use; legs make copies of it."""

    request_id: str
    endpoint: Endpoint
    model: str
    body: Mapping[str, Any]
    stream: bool
    session: SessionKey | None
    salt: str | None = None  # of the prefix caches; the router's, never the client's
    patience_s: float | None = None  # how long the client waits for its answer, where it says so
    goes_on: bool = False  # with a request that has been let in: it waits for room, and is not refused for want of it
