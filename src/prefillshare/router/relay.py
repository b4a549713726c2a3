"""The two legs of a call: prefill on the base, then decode on the module that was asked for.

A leg whose worker refuses the connection goes to another worker of the same pool, once; nothing has been sent then. All
other failures end the call with an error. There is no path on which a decode worker prefills.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import aiohttp

from prefillshare.router.admission import Call
from prefillshare.router.answer import Usage, rewrite_answer, rewrite_stream
from prefillshare.router.errors import (
    KV_LOST,
    RouterError,
    unavailable,
    worker_failed,
    worker_refused,
    worker_timed_out,
)
from prefillshare.router.legs import Prefilled, decode_body, prefill_body, read_prefill
from prefillshare.router.observer import Leg, unobserved
from prefillshare.router.placement.placement import Placed, Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router_config import RouterConfig

LOG = logging.getLogger("prefillshare.router")

ATTEMPTS = 2
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# Shorter than the 5 s after which a vLLM worker closes an idle connection: reusing one just then would fail a call.
_KEEPALIVE_S = 2.0


def open_http(settings: RouterConfig, worker_key: str | None = None) -> aiohttp.ClientSession:
    """The router's connections to its workers, with the key that they ask for; unlimited, since every stream holds one.

    aiohttp rather than httpx: for the same 300 calls of two legs, 200 events each, 64 at a time, it took 0.5 s of CPU
    where httpx took 7 s, and unlike httpx's its cost a call does not grow with the number of open connections.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s)
    headers = {"authorization": f"Bearer {worker_key}"} if worker_key else {}
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar, headers=headers)


class Decoding:
    """A decode worker that has accepted the call. Exactly one of `answer` and `stream` is used."""

    def __init__(self, placed: Placed, response: aiohttp.ClientResponse, cached_tokens: int, timeout_s: float) -> None:
        self.worker = placed.worker
        self.placed_by = placed.rule
        self._response = response
        self._cached_tokens = cached_tokens
        self._timeout_s = timeout_s
        self._usage = Usage()

    @property
    def output_tokens(self) -> int | None:
        """As the worker reports it at the answer's end; None before."""
        return self._usage.output_tokens

    async def answer(self) -> bytes:
        raw = await _read(self._response, self.worker, self._timeout_s)
        return rewrite_answer(raw, self._cached_tokens, self.worker.name, self._usage)

    def stream(self, *, show_usage: bool = True) -> AsyncIterator[bytes]:
        self._usage.shown = show_usage
        return rewrite_stream(self._chunks(), self._cached_tokens, self.worker.name, self._usage)

    async def _chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    chunk = await content.readany()
            except TimeoutError:
                raise worker_timed_out(self.worker.name, self._timeout_s) from None
            except aiohttp.ClientError:
                return  # the stream has ended without [DONE], which is an error downstream
            if not chunk:
                return
            yield chunk


class Relay:
    """`settings.request_timeout_s` bounds the silence of a worker in either leg, not the length of an answer."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        settings: RouterConfig,
        placement: Placement,
        observe: Callable[[Worker, str], AbstractContextManager[Leg]] = unobserved,
    ) -> None:
        """`observe` is entered around every leg's work on a worker, with the name of the model that it serves."""
        self._http = http
        self._timeout_s = settings.request_timeout_s
        self._placement = placement
        self._observe = observe

    async def prefill(self, call: Call) -> Prefilled:
        """Has the base compute the prompt's KV, or find it in its cache.

        Raises:
            RouterError: no worker is up (503), it failed or returned no KV (502), it timed out (504), or it refused the
                request as the client's mistake (its own status) or the role's instructions cannot be moved (400).
        """
        route = self._placement.routes[call.model]
        if not route.decode.ready():
            # Checked first: a prefill that nobody fetches holds its blocks on the prefill worker for 30 s.
            raise _no_worker(route.decode)
        started = time.perf_counter()
        body = prefill_body(call, route.base, route.instructions)
        async with self._leg(
            call,
            route.prefill,
            choose=lambda tried: self._placement.prefill(call.model, call.session, body, tried),
            body=body,
        ) as (placed, response):
            worker = placed.worker
            raw = await _read(response, worker, self._timeout_s)
        try:
            answer = json.loads(raw)
        except ValueError:
            raise worker_failed(worker.name, "sent an answer that is not JSON") from None
        return read_prefill(call, worker, answer, time.perf_counter() - started, placed.rule)

    @asynccontextmanager
    async def decode(self, call: Call, prefilled: Prefilled) -> AsyncIterator[Decoding]:
        """Has the module continue from the KV. Leaving the context early makes the worker abort the request.

        Raises:
            RouterError: as for `prefill`; after that from the `Decoding`, when its answer breaks off.
        """
        async with self._leg(
            call,
            self._placement.routes[call.model].decode,
            choose=lambda tried: self._placement.decode(
                call.model, call.session, prefilled.prompt_token_ids, tried, call.salt
            ),
            body=decode_body(call, prefilled),
        ) as (placed, response):
            yield Decoding(placed, response, prefilled.cached_tokens, self._timeout_s)

    @asynccontextmanager
    async def _leg(
        self,
        call: Call,
        pool: Pool,
        choose: Callable[[list[Worker]], Placed | None],
        body: Mapping[str, Any],
    ) -> AsyncIterator[tuple[Placed, aiohttp.ClientResponse]]:
        """A worker of `pool` that answers the call with status 200, and its response, not yet read."""
        tried: list[Worker] = []
        while len(tried) < ATTEMPTS and (placed := choose(tried)):
            worker = placed.worker
            tried.append(worker)
            with pool.lease(worker, placed.tokens), self._observe(worker, str(body["model"])) as leg:
                try:
                    response = await self._post(call, worker, body, leg.headers)
                except _NOT_CONNECTED as error:
                    pool.mark_down(worker, f"cannot connect ({type(error).__name__})")
                    LOG.warning("request=%s worker=%s down reason=not_connected", call.request_id, worker.name)
                    leg.failed("not_connected")
                    continue
                except aiohttp.ClientError as error:
                    pool.mark_down(worker, f"lost the connection ({type(error).__name__})")
                    raise worker_failed(worker.name, "the connection ended before it answered") from None
                try:
                    if response.status != 200:
                        raw = await _read(response, worker, self._timeout_s)
                        raise worker_refused(worker.name, response.status, raw)
                    yield placed, response
                except RouterError as error:
                    if error.code == KV_LOST:
                        self._placement.lost(pool, call.session, worker)  # so that the retry meets another one
                    raise
                finally:
                    # A response that was read to its end has given its connection back already; any other must not be
                    # read further: closing it is what tells the worker to abort.
                    response.close()
                return
        raise _no_worker(pool)

    async def _post(
        self, call: Call, worker: Worker, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self._timeout_s):
                headers = {**headers, "x-request-id": call.request_id}
                return await self._http.post(f"{worker.url}/v1/{call.endpoint}", json=body, headers=headers)
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError:
            raise worker_timed_out(worker.name, self._timeout_s) from None


def _no_worker(pool: Pool) -> RouterError:
    return unavailable(f"no {pool.name} worker is up ({pool.why_down()})")


async def _read(response: aiohttp.ClientResponse, worker: Worker, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await response.read()
    except TimeoutError:
        raise worker_timed_out(worker.name, timeout_s) from None
    except aiohttp.ClientError:
        raise worker_failed(worker.name, "the connection ended before the answer was complete") from None
