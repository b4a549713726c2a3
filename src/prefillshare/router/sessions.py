"""Which session a call belongs to, and which prefill worker holds that session's context."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

MAX_SESSIONS = 10_000

SessionKey = tuple[str, str]  # (where the key came from, its value): a user and a session of one name stay apart


def session_key(headers: Mapping[str, str], body: Mapping[str, Any]) -> SessionKey | None:
    """The call's session, from the most specific sign there is, or None."""
    if value := headers.get("x-session-id"):
        return ("x-session-id", value)
    for field in ("prompt_cache_key", "user"):
        value = body.get(field)
        if isinstance(value, str) and value:
            return (field, value)
    return None


class Affinity:
    """Session -> name of the prefill worker that served it last. The longest unused sessions are forgotten first."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._workers: OrderedDict[SessionKey, str] = OrderedDict()

    def get(self, session: SessionKey) -> str | None:
        worker = self._workers.get(session)
        if worker is not None:
            self._workers.move_to_end(session)
        return worker

    def set(self, session: SessionKey, worker: str) -> None:
        self._workers[session] = worker
        self._workers.move_to_end(session)
        if len(self._workers) > self._max_sessions:
            self._workers.popitem(last=False)
