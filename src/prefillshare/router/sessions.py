"""Which session a call belongs to, and which worker of a pool holds that session's context."""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

SessionKey = tuple[str, str]  # (where the key came from, its value): a user and a session of one name stay apart


def session_key(headers: Mapping[str, str], body: Mapping[str, Any]) -> SessionKey | None:
    """The call's session, from the most specific sign there is, or None. `session_id` is vLLM's field."""
    if value := headers.get("x-session-id"):
        return ("x-session-id", value)
    for field in ("session_id", "prompt_cache_key", "user"):
        value = body.get(field)
        if isinstance(value, str) and value:
            return (field, value)
    return None


def session_digest(session: SessionKey) -> bytes:
    """Over all of both: what comes last in the source is the tenant. No source has a zero in it, so none runs on."""
    source, value = session
    return blake2b(f"{source}\0{value}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Affinity:
    """Session -> name of the worker that served it last. The longest unused sessions are forgotten first.

    Sessions are kept as digests: clients choose their length, a key may be as long as a request body.
    """

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._workers: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, session: SessionKey) -> str | None:
        key = session_digest(session)
        worker = self._workers.get(key)
        if worker is not None:
            self._workers.move_to_end(key)
        return worker

    def forget(self, session: SessionKey) -> None:
        self._workers.pop(session_digest(session), None)

    def set(self, session: SessionKey, worker: str) -> None:
        key = session_digest(session)
        self._workers[key] = worker
        self._workers.move_to_end(key)
        if len(self._workers) > self._max_sessions:
            self._workers.popitem(last=False)
