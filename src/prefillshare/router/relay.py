"""The two legs of a call: prefill on the base, then decode on the module that was asked for.

A leg is one try on one worker; what may follow on a failure is decided by `retry` and done by `serving`. A leg ends
with its worker: as soon as that is found down, though its connection be open. There is no path on which a decode worker
prefills.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Any

import aiohttp

from prefillshare.open_files import ran_out
from prefillshare.router.answer import Usage, rewrite_answer, rewrite_stream
from prefillshare.router.call import Call
from prefillshare.router.errors import (
    KV_LOST,
    NOT_CONNECTED,
    OUT_OF_FILES,
    RouterError,
    no_worker_up,
    not_connected,
    out_of_files,
    worker_failed,
    worker_refused,
    worker_timed_out,
)
from prefillshare.router.fast_json import from_json, to_json
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.hedge import first_of
from prefillshare.router.legs import Prefilled, decode_body, prefill_body, read_prefill
from prefillshare.router.observer import Leg, unobserved
from prefillshare.router.placement.placement import Placed, Placement
from prefillshare.router.pool import OnWorker, Pool, Worker
from prefillshare.router.retry import Attempts
from prefillshare.router.route import ModelRoute
from prefillshare.router.tools import check_tools
from prefillshare.router.turns import Turns
from prefillshare.router.while_up import while_up
from prefillshare.router_config import RouterConfig

LOG = logging.getLogger("prefillshare.router")

_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_STRUCTURES = ("response_format", "structured_outputs", "tools")
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
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=jar, headers=headers, json_serialize_bytes=to_json
    )


class Decoding:
    """A decode worker that has accepted the call. Exactly one of `answer` and `stream` is used."""

    def __init__(
        self,
        placed: Placed,
        response: aiohttp.ClientResponse,
        cached_tokens: int,
        timeout_s: float,
        on_worker: OnWorker,
        heard: Callable[[], None],
    ) -> None:
        """`heard` is called whenever the worker has sent something of its answer; `on_worker` is told of it, too."""
        self.worker = placed.worker
        self.placed_by = placed.rule
        self._response = response
        self._cached_tokens = cached_tokens
        self._timeout_s = timeout_s
        self._on_worker = on_worker
        self._heard = heard
        self._usage = Usage()

    @property
    def turn_s(self) -> float | None:
        """How long the call has waited for its turn on a device that the worker shares; None where it shares none."""
        return self._on_worker.turn_s

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
            self._on_worker.for_worker = True
            try:
                async with asyncio.timeout(self._timeout_s):
                    chunk = await content.readany()
            except TimeoutError:
                raise worker_timed_out(self.worker.name, self._timeout_s) from None
            except aiohttp.ClientError:
                return  # the stream has ended without [DONE], which is an error downstream
            if not chunk:
                return
            self._heard()
            self._on_worker.for_worker = False
            yield chunk


class Relay:
    """`settings.request_timeout_s` bounds the silence of a worker in either leg, not the length of an answer."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        settings: RouterConfig,
        placement: Placement,
        breaker: Breaker,
        observe: Callable[[Worker, str], AbstractContextManager[Leg]] = unobserved,
        turns: Turns | None = None,
    ) -> None:
        """`observe` is entered around every leg's work on a worker, with the name of the model that it serves; `turns`
        are those of decode workers that share a device."""
        self._http = http
        self._timeout_s = settings.request_timeout_s
        self._hedge_after_s = settings.retry.hedge_after_s
        self._placement = placement
        self._breaker = breaker
        self._observe = observe
        self._turns = turns or Turns(0.0)

    async def prefill(self, call: Call, ticket: Ticket, attempts: Attempts) -> Prefilled:
        """Has the base compute the prompt's KV, or find it in its cache.

        Raises:
            RouterError: no worker is up (503), it failed, went down or returned no KV (502), it timed out (504), or it
                refused the request as the client's mistake (its own status), the role's instructions cannot be moved or
                the module cannot call tools (400).
        """
        route = self._placement.routes[call.model]
        check_tools(call, route)
        if not route.decode.ready():
            # Checked first: a prefill that nobody fetches holds its blocks on the prefill worker for its lease
            # (`workers.kv_lease_s`).
            raise no_worker_up(route.decode.name, route.decode.why_down())
        body = prefill_body(call, route.base, route.instructions)
        has_room = ticket.room_to_prefill()
        placed = attempts.choose(
            lambda failed: self._placement.prefill(call.model, call.session, ticket.prompt, failed, has_room)
        )
        if placed is None:
            raise no_worker_up(route.prefill.name, route.prefill.why_down())
        ticket.prefills_on(placed.worker)
        if self._hedge_after_s is None:
            return await self._prefill_on(placed, call, route, body, attempts)

        def another() -> Coroutine[Any, Any, Prefilled] | None:
            tried = {*attempts.failed_workers, placed.worker, *ticket.full()}
            rival = self._placement.prefill(call.model, call.session, ticket.prompt, tried)
            return rival and self._prefill_on(rival, call, route, body, attempts)

        own = self._prefill_on(placed, call, route, body, attempts)
        prefilled = await first_of(own, another, self._hedge_after_s)
        if prefilled.worker is not placed.worker:
            ticket.prefilled_by(prefilled.worker)
        self._placement.stay(route.prefill, call.session, prefilled.worker)
        return prefilled

    async def _prefill_on(
        self, placed: Placed, call: Call, route: ModelRoute, body: Mapping[str, Any], attempts: Attempts
    ) -> Prefilled:
        started = time.perf_counter()
        worker = placed.worker
        try:
            async with self._leg(call, route.prefill, placed, body) as (response, _):
                answer = _json(await _read(response, worker, self._timeout_s), worker)
                seconds = time.perf_counter() - started
                handoff = read_prefill(call, worker, answer)
                chain = self._placement.chain_of(handoff.prompt_token_ids, call.salt)
                return Prefilled(worker, handoff, chain, seconds, placed.rule)
        except RouterError as error:
            attempts.failed(error, worker)
            raise

    @asynccontextmanager
    async def decode(
        self, call: Call, ticket: Ticket, prefilled: Prefilled, attempts: Attempts
    ) -> AsyncIterator[Decoding]:
        """Has the module continue from the KV. Leaving the context early makes the worker abort the request.

        Raises:
            RouterError: as for `prefill`; after that from the `Decoding`, when its answer breaks off, or from leaving
                the context, when the worker has gone down.
        """
        pool, chain = self._placement.routes[call.model].decode, prefilled.chain
        has_room = ticket.room_to_decode()
        placed = attempts.choose(
            lambda failed: self._placement.decode(call.model, call.session, chain, failed, has_room)
        )
        if placed is None:
            raise no_worker_up(pool.name, pool.why_down())
        placed = ticket.decodes_on(placed)
        try:
            body, sent = decode_body(call, prefilled.handoff), ticket.sent
            async with self._leg(call, pool, placed, body, sent) as (response, on_worker):
                heard = partial(pool.heard, placed.worker)
                yield Decoding(placed, response, prefilled.handoff.cached_tokens, self._timeout_s, on_worker, heard)
        except RouterError as error:
            attempts.failed(error, placed.worker, prefilled.worker)
            if error.code == KV_LOST:
                self._placement.lost(pool, call.session, placed.worker)
            if error.status < 500 or error.code in (NOT_CONNECTED, OUT_OF_FILES):
                ticket.not_taken()
            raise
        finally:
            ticket.decoded()

    @asynccontextmanager
    async def _leg(
        self,
        call: Call,
        pool: Pool,
        placed: Placed,
        body: Mapping[str, Any],
        sent: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, OnWorker]]:
        """The worker's response to the call, with status 200 and not yet read. `sent` is called when its turn has come
        and the call is about to go to the worker."""
        worker = placed.worker
        with pool.lease(worker, placed.tokens), self._observe(worker, str(body["model"])) as leg:
            try:
                async with while_up(pool, worker) as on_worker, self._turn(pool, worker, on_worker):
                    sent()
                    response = await self._post(call, pool, worker, body, leg.headers)
                    try:
                        if response.status != 200:
                            refusal = await _read(response, worker, self._timeout_s)
                            on_worker.refused = True
                            raise worker_refused(worker.name, response.status, refusal)
                        yield response, on_worker
                    finally:
                        # A response that was read to its end has given its connection back already; any other must
                        # not be read further: closing it is what tells the worker to abort.
                        response.close()
            except RouterError as error:
                if worker.role == "prefill" or not _wants_structure(body):
                    self._breaker.failed(pool, worker, error)
                raise
            self._breaker.succeeded(worker)
            pool.heard(worker)

    @asynccontextmanager
    async def _turn(self, pool: Pool, worker: Worker, on_worker: OnWorker) -> AsyncIterator[None]:
        on_worker.for_worker = False  # but for those that it shares a device with
        async with self._turns.of(pool, worker) as on_worker.turn_s:
            pool.wait_for(worker, on_worker)
            yield

    async def _post(
        self, call: Call, pool: Pool, worker: Worker, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self._timeout_s):
                headers = {**headers, "x-request-id": call.request_id}
                return await self._http.post(f"{worker.url}/v1/{call.endpoint}", json=body, headers=headers)
        except _NOT_CONNECTED as error:
            if ran_out(error):
                raise out_of_files() from None
            reason = f"cannot connect ({type(error).__name__})"
            _mark_down(pool, worker, reason)
            raise not_connected(worker.name, reason) from None
        except aiohttp.ClientError as error:
            _mark_down(pool, worker, f"lost the connection ({type(error).__name__})")
            raise worker_failed(worker.name, "the connection ended before it answered") from None
        except TimeoutError:
            raise worker_timed_out(worker.name, self._timeout_s) from None


def _wants_structure(body: Mapping[str, Any]) -> bool:
    """Then a worker's failure may be the client's doing: what vLLM's grammar compilers make of a structure is not known
    well enough to blame the worker. The known case, a grammar that no answer can follow, is a 400 of the worker's."""
    return any(body.get(field) for field in _STRUCTURES)


def _mark_down(pool: Pool, worker: Worker, reason: str) -> None:
    """Until its next health check, which is a second away."""
    if pool.mark_down(worker, reason):
        LOG.warning("worker=%s down reason=%r", worker.name, reason)


def _json(raw: bytes, worker: Worker) -> Any:
    try:
        return from_json(raw)
    except ValueError:
        raise worker_failed(worker.name, "sent an answer that is not JSON") from None


async def _read(response: aiohttp.ClientResponse, worker: Worker, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await response.read()
    except TimeoutError:
        raise worker_timed_out(worker.name, timeout_s) from None
    except aiohttp.ClientError:
        raise worker_failed(worker.name, "the connection ended before the answer was complete") from None
