"""The HTTP server in front of the router: what can be sent before the application sees anything of it.

uvicorn parses with httptools where that is installed, which bounds neither the size of a request's head nor the time
that it takes: both are done here. Without httptools it is h11, which bounds the size itself and answers with a 400.
Neither bounds how long a client takes to read its answer, which is done here with httptools alone.
"""

import asyncio
import importlib.util
import json
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from prefillshare.access import LimitsConfig
from prefillshare.router.errors import RouterError
from prefillshare.router.refusals import Reason, Refusals

_SLACK = 2  # heads a little too long reach the gate, whose answer is the better one
_REFUSED: dict[int, Reason] = {408: "head_timeout", 431: "head_too_large"}
_MOST_OPEN = 2  # connections for each that is served: the second are told that there are too many
# Longer than the 60 s for which nginx and AWS's load balancers keep an idle connection to use it again: if the router
# closes it first, the next call may be on its way already and fails. Idle ones count as `max_connections` does, too.
_KEEP_ALIVE_S = 75


def server_config(
    app: ASGIApp,
    limits: LimitsConfig,
    *,
    unread_s: float = 600.0,
    refusals: Refusals | None = None,
    **options: Any,
) -> uvicorn.Config:
    """uvicorn's configuration under the limits; `options` are more of its own.

    `unread_s` is how long a client may leave what is sent to it. `refusals` counts what is refused, with httptools.
    """
    return uvicorn.Config(
        app,
        http=_http(limits, unread_s, refusals or Refusals()),
        ws="none",
        h11_max_incomplete_event_size=_SLACK * limits.max_header_bytes,
        limit_concurrency=limits.max_connections,  # requests beyond that many connections, or calls, get a 503
        timeout_keep_alive=_KEEP_ALIVE_S,
        server_header=False,
        proxy_headers=False,  # nothing goes by a client's address, so nobody need be believed about it
        **options,
    )


def _http(limits: LimitsConfig, unread_s: float, refusals: Refusals) -> Any:
    if importlib.util.find_spec("httptools") is None:
        return "h11"
    return partial(_bounded_protocol(), limits, unread_s, refusals)


def _bounded_protocol() -> Any:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class BoundedProtocol(HttpToolsProtocol):
        """Ends a connection whose request's head is too long (431), or too long in coming (408).

        Also one that goes on sending the body of a request that has been answered, as one without a key is at once. And
        one that is opened beside far too many: who sends nothing cannot be told so, but keeps memory and a file. And
        one whose client does not read, be its answer under way, failed or complete: closed, it would wait for ever.
        """

        def __init__(
            self, limits: LimitsConfig, unread_s: float, refusals: Refusals, *args: Any, **kwargs: Any
        ) -> None:
            super().__init__(*args, **kwargs)
            self._limits = limits
            self._refusals = refusals
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
                self._refusals.count("far_too_many")
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
                self._refusals.count("too_many")
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
                if self._head_bytes > _SLACK * self._limits.max_header_bytes:
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
            self._refusals.count(_REFUSED[error.status])
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

    return BoundedProtocol
