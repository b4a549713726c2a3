"""Eager extension: when a turn ends, the base prefills its answer, so that the next turn finds its context ready.

It is for calls alone: it fails without a word, is never tried again, and counts against nobody's rates or limits. On a
prefill worker it leaves nothing behind but cached blocks.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from starlette.types import Send

from prefillshare.router.accounting import Ledger
from prefillshare.router.call import Call
from prefillshare.router.extension.metrics import ExtensionMetrics, Outcome
from prefillshare.router.extension.next_prompt import adds_blocks, next_prompt
from prefillshare.router.extension.overheard import Overheard, read_choice
from prefillshare.router.extension.tally import Tally
from prefillshare.router.legs import Prefilled, read_prompt
from prefillshare.router.placement.chunks import chain_of_tokens
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.record import CallRecord
from prefillshare.router.route import ModelRoute
from prefillshare.router.sessions import SessionKey
from prefillshare.router_config import ExtensionMode

LOG = logging.getLogger("prefillshare.router")

POLL_S = 0.02  # between looks at whether the worker is idle
PATIENCE_S = 5.0  # for an idle worker; then the tool has probably answered
MAX_TURNS = 64  # that wait for their extension, or are in it
_TIMEOUT_S = 60.0


class Extension:
    """Of one router. `auto` computes only on workers that have no call, and gives up when one gets a call; `on` does
    not wait and goes on. Both end with the session's next call, and begin with turns that ended well only."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        mode: ExtensionMode,
        routes: Mapping[str, ModelRoute],
        ledger: Ledger,
        metrics: ExtensionMetrics,
        block_size: int,
    ) -> None:
        self.off = mode == "off"
        self._yields = mode == "auto"
        self._http = http
        self._routes = routes
        self._ledger = ledger
        self._metrics = metrics
        self._block_size = block_size
        self._tally = Tally(block_size, metrics.wasted)
        self._tasks: dict[SessionKey | str, asyncio.Task[None]] = {}
        self._computing: set[str] = set()  # names of workers

    def turn(self, send: Send) -> "Turn":
        """For one request, to be answered through the turn's `send`."""
        return Turn(self, send)

    def prefilled(self, call: Call, prefilled: Prefilled) -> None:
        """Of every call whose first leg has succeeded."""
        if hits := self._tally.used(prefilled.worker.name, prefilled.chain, prefilled.handoff.cached_tokens):
            self._metrics.hit(call.model, hits)

    def cancel(self, session: SessionKey | None) -> None:
        if session is not None and (task := self._tasks.pop(session, None)):
            task.cancel()

    def begin(self, call: Call, record: CallRecord, answer: Callable[[], bytes | None]) -> None:
        """After a turn that has ended well."""
        if len(self._tasks) >= MAX_TURNS:
            self._metrics.ended(call.model, "busy")
            return
        self.cancel(call.session)
        key = call.session or call.request_id
        task = asyncio.create_task(self._try(call, record, answer))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._tasks.pop(key) if self._tasks.get(key) is done else None)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _try(self, call: Call, record: CallRecord, answer: Callable[[], bytes | None]) -> None:
        outcome: Outcome = "cancelled"
        try:
            outcome = await self._extend(call, record, answer)
        except Exception as error:  # of the worker, or from what a client has sent: only the gain is lost
            outcome = "failed"
            LOG.debug("request=%s not extended: %s", call.request_id, type(error).__name__)
        finally:
            self._metrics.ended(call.model, outcome)

    async def _extend(self, call: Call, record: CallRecord, answer: Callable[[], bytes | None]) -> Outcome:
        route = self._routes[call.model]
        prompt = record.tokens.prompt if record.tokens else 0
        output = self._block_size if record.output_tokens is None else record.output_tokens
        if not adds_blocks(call, route.instructions, prompt, output, self._block_size):
            return "no_gain"
        worker = next((worker for worker in route.prefill.ready() if worker.name == record.prefill_worker), None)
        if worker is None or not await self._is_free(route.prefill, worker):
            return "busy"
        said = answer()
        choice = None if said is None else read_choice(said, stream=record.stream)
        body = choice and next_prompt(call, route.base, route.instructions, choice)
        if not body:
            return "unknown"
        self._computing.add(worker.name)
        try:
            response = await self._compute(call, route.prefill, worker, body)
        finally:
            self._computing.discard(worker.name)
        if response is None:
            return "cancelled"
        self._count(call, worker, response)
        return "done"

    async def _is_free(self, pool: Pool, worker: Worker) -> bool:
        """Waits a while until the worker has no call and no other extension; does not wait unless extension yields."""
        if not self._yields:
            return True
        for _ in range(round(PATIENCE_S / POLL_S)):
            if pool.in_flight(worker) == 0 and worker.name not in self._computing:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _compute(self, call: Call, pool: Pool, worker: Worker, body: Mapping[str, Any]) -> Any:
        """The worker's response; None when a call has come to it."""
        request = asyncio.create_task(self._post(call, worker, body))
        try:
            while not request.done():
                await asyncio.wait({request}, timeout=POLL_S)
                if self._yields and pool.in_flight(worker) and not request.done():
                    return None
            return request.result()
        finally:
            request.cancel()  # closes the connection, at which the worker aborts; what it has computed stays cached
            await asyncio.gather(request, return_exceptions=True)

    async def _post(self, call: Call, worker: Worker, body: Mapping[str, Any]) -> Any:
        url, headers = f"{worker.url}/v1/{call.endpoint}", {"x-request-id": f"{call.request_id}-extension"}
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with self._http.post(url, json=body, headers=headers, timeout=timeout) as response:
            response.raise_for_status()
            return await response.json()

    def _count(self, call: Call, worker: Worker, response: Any) -> None:
        token_ids, cached = read_prompt(call, response)
        chain = chain_of_tokens(token_ids, self._block_size, call.salt)
        self._ledger.record(worker.name, call.model, chain, cached)
        computed = self._tally.extended(worker.name, call.model, chain, cached)
        self._metrics.computed(call.model, computed)


class Turn:
    """One request, from the moment at which its answer can be overheard to its end."""

    def __init__(self, extension: Extension, send: Send) -> None:
        self._extension = extension
        self._overheard = None if extension.off else Overheard(send)
        self._call: Call | None = None
        self.send: Send = self._overheard or send

    def began(self, call: Call) -> None:
        self._extension.cancel(call.session)
        self._call = call

    def ended(self, record: CallRecord) -> None:
        if self._overheard and self._call and record.ok:
            self._extension.begin(self._call, record, self._overheard.answer)
