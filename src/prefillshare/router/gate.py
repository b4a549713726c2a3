"""Stands in front of the router's paths: headers of a bearable size, a valid key, and the limits of that key."""

import json
import logging
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefillshare.router.auth import Keyring, Unauthorized
from prefillshare.router.errors import RouterError, internal
from prefillshare.router.limits import check_headers
from prefillshare.router.privacy import failure_text
from prefillshare.router.rates import RateLimited
from prefillshare.router.status.page import PUBLIC_PATHS
from prefillshare.router.tenant_metrics import TenantMetrics
from prefillshare.router.tenants import Caller, Visit
from prefillshare.router_config import RouterConfig

LOG = logging.getLogger("prefillshare.router")

OPEN_PATHS = PUBLIC_PATHS | {"/health"}  # a load balancer has no key, and the status page asks for it by itself
STRANGER = Caller(models=frozenset(), operator=False)


class Gate:
    """ASGI middleware. What comes through has a `Visit` as `scope["user"]`; its body has not been read.

    Nothing that the app raises gets past it: a server logs exceptions with their messages.
    """

    def __init__(
        self, app: ASGIApp, *, settings: RouterConfig, keyring: Keyring[Caller] | None, metrics: TenantMetrics
    ) -> None:
        """Without a keyring everybody is let in."""
        self._app = app
        self._settings = settings
        self._keyring = keyring
        self._metrics = metrics
        self._anonymous = Caller()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = STRANGER
        answer = _Answer(send)
        try:
            check_headers(scope["headers"], self._settings.limits)
            caller = self._caller(scope)
            scope["user"] = Visit(caller)
            if scope["method"] == "POST":
                await self._limited(caller, scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except RouterError as error:
            await self._refuse(caller, answer, error)
        except Exception as error:
            LOG.error("failed in the router: %s", failure_text(error, with_messages=self._settings.log_prompts))
            if not answer.started:
                await answer.fail(internal(), uuid.uuid4().hex)

    def _caller(self, scope: Scope) -> Caller:
        if self._keyring is None:
            return self._anonymous
        try:
            return self._keyring.holder(scope["headers"])
        except Unauthorized:
            if scope["path"] in OPEN_PATHS:
                return STRANGER
            raise

    async def _limited(self, caller: Caller, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        caller.rates.enter()
        answer.rates = caller.rates
        answer.entered = True
        try:
            await self._app(scope, receive, answer)
        finally:
            answer.leave()

    async def _refuse(self, caller: Caller, answer: "_Answer", error: RouterError) -> None:
        """Answers, counts and logs; the log does not say what was sent, not even the path, which is the client's."""
        if isinstance(error, Unauthorized):
            self._metrics.auth_failed(error.reason)
        if isinstance(error, RateLimited):
            self._metrics.rate_limited(caller.name, error.kind)
            answer.rates = caller.rates
        detail = error.reason if isinstance(error, Unauthorized) else error.code
        request_id = uuid.uuid4().hex
        LOG.info("request=%s refused status=%d reason=%s tenant=%s", request_id, error.status, detail, caller.name)
        await answer.fail(error, request_id)


class _Answer:
    """A `send` that adds what is left of the caller's limits when the answer starts, and ends the call with it.

    Ended just before the last byte is sent: a client that has read its answer may call again at once.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.entered = False  # and not left yet
        self.rates = STRANGER.rates

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.update(self.rates.headers())
            message = {**message, "headers": headers.raw}
        elif not message.get("more_body"):
            self.leave()
        await self._send(message)

    def leave(self) -> None:
        if self.entered:
            self.entered = False
            self.rates.leave()

    async def fail(self, error: RouterError, request_id: str) -> None:
        body = json.dumps(error.body()).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": request_id,
            **error.headers,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": raw})
        await self({"type": "http.response.body", "body": body, "more_body": False})
