"""One request as it is answered: what is known of it so far, and what has been sent for it."""

import json
import time
import uuid
from collections.abc import Mapping

from starlette.types import Send

from prefillshare.router.call import Endpoint
from prefillshare.router.errors import RouterError
from prefillshare.router.record import CallRecord
from prefillshare.router.tenants import Visit

CLIENT_LEFT = 499  # nginx's code; only in logs and metrics, there is nobody to send it to


class Exchange:
    """Sends either one `whole` answer, or the `events` of a stream and an empty `body` after them, or fails."""

    owns_prompt = True  # False: the prompt's tokens are counted with those of another exchange

    def __init__(self, send: Send, visit: Visit, endpoint: Endpoint) -> None:
        self.send = send
        self.visit = visit
        self.headers: dict[str, str] = {}
        self.streaming = False
        self.record = CallRecord(uuid.uuid4().hex, endpoint, "unknown", CLIENT_LEFT, None, 0.0)
        self._started = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    async def start(self, status: int, content_type: str, extra: Mapping[str, str] | None = None) -> None:
        headers = (
            {"content-type": content_type, "x-request-id": self.record.request_id} | self.headers | dict(extra or {})
        )
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, data: bytes, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})
        self.record.sent_bytes += len(data)

    async def whole(self, status: int, data: bytes, extra: Mapping[str, str] | None = None) -> None:
        await self.start(status, "application/json", {"content-length": str(len(data))} | dict(extra or {}))
        await self.body(data)

    async def events(self, data: bytes) -> None:
        """Events of a stream; with the first go the headers, so that a worker that fails before is an HTTP error."""
        if not self.streaming:
            # nginx and some other proxies collect what they pass on, unless they are told not to.
            extra = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            await self.start(200, "text/event-stream; charset=utf-8", extra)
            self.streaming = True
            self.record.first_token_seconds = self.seconds()
        await self.body(data, more=True)

    def let_in(self) -> None:
        """Told when there is room for the call."""

    def prefilled(self) -> None:
        """Told when the prompt's KV is there."""

    async def fail(self, error: RouterError) -> None:
        self.record.status, self.record.reason = error.status, error.code or error.type
        if self.streaming:
            await self.body(error.event())
        else:
            await self.whole(error.status, json.dumps(error.body()).encode(), error.headers)
