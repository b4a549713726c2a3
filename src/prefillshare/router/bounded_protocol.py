"""uvicorn's protocol with bounds that it lacks. Imports httptools, so only `server` imports it, where that is there."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from prefillshare.router.errors import RouterError
from prefillshare.router.turned_away import Reason, TurnedAway
from prefillshare.router_config import LimitsConfig

_TURNED_AWAY: dict[int, Reason] = {408: "head_timeout", 431: "head_too_large"}
_MOST_OPEN = 2  # connections for each that is served: the second are told that there are too many


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose request's head is too long (431), or too long in coming (408).

    Also one that goes on sending the body of a request that has been answered, as one without a key is at once. And
    one that is opened beside far too many: who sends nothing cannot be told so, but keeps memory and a file. And
    one whose client does not read, be its answer under way, failed or complete: closed, it would wait for ever.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        most_head_bytes: int,
        unread_s: float,
        turned_away: TurnedAway,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._most_head_bytes = most_head_bytes
        self._turned_away = turned_away
        self._unread_s = unread_s
        self._unread_timer: asyncio.TimerHandle | None = None
        self._under_way: list[Any] = []  # requests that are being answered or wait for that
        self._in_head = self._in_body = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused as long as anything has not been taken
        if len(self.connections) > _MOST_OPEN * self._limits.max_connections:
            self._turned_away.count("far_too_many")
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)
        for cycle in self._under_way:  # uvicorn tells the last one alone, which may not have begun
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self._unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._await_head()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_timer()
        if max(len(self.connections), len(self.tasks)) >= self._limits.max_connections:  # as uvicorn decides it
            self._turned_away.count("too_many")
        super().on_headers_complete()
        self._under_way = [cycle for cycle in (*self._under_way, self.cycle) if not cycle.response_complete]
        if len(self._under_way) == 2:
            # uvicorn stops reading until the first is answered, and would not see the client leave.
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            # The first piece counts whole, with what may have come before it: at most one read too much.
            self._head_bytes += len(data)
            if self._head_bytes > self._most_head_bytes:
                self._end(RouterError(431, "The headers are too large.", code="headers_too_large"))

    def _await_head(self) -> None:
        self._stop_timer()
        error = RouterError(408, "The headers did not arrive in time.", code="request_timeout")
        self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._end, error)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _end(self, error: RouterError) -> None:
        """Closes the connection, with an answer unless that of an earlier request is still under way."""
        self._turned_away.count(_TURNED_AWAY[error.status])
        self._stop_timer()
        if not self._in_body and (self.cycle is None or self.cycle.response_complete):
            body = json.dumps(error.body()).encode()
            reason = {408: "Request Timeout", 431: "Request Header Fields Too Large"}[error.status]
            head = (
                f"HTTP/1.1 {error.status} {reason}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
