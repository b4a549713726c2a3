"""One OpenAI endpoint: admit the request, run its two legs, send the answer, and account for it."""

import asyncio
import json
import logging
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from prefillshare.router.accounting import Attribution, Ledger
from prefillshare.router.admission import Call, Endpoint, admit, read_body
from prefillshare.router.choices import serve_all, split
from prefillshare.router.disconnect import unless_disconnected
from prefillshare.router.divergence import Divergence
from prefillshare.router.drain import Drain
from prefillshare.router.errors import KV_LOST, NOT_CONNECTED, RouterError, internal
from prefillshare.router.exchange import CLIENT_LEFT, Exchange
from prefillshare.router.extension.extension import Extension
from prefillshare.router.fleet import Fleet
from prefillshare.router.flow.control import FlowControl
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.legs import Prefilled, asks_for_usage
from prefillshare.router.limits import check_body
from prefillshare.router.metrics import LegName, Metrics
from prefillshare.router.observer import Observer
from prefillshare.router.privacy import failure_text
from prefillshare.router.relay import Decoding, Relay
from prefillshare.router.retry import Attempts
from prefillshare.router.tenant_metrics import TenantMetrics
from prefillshare.router_config import RouterConfig

LOG = logging.getLogger("prefillshare.router")


@dataclass(frozen=True, slots=True)
class Services:
    """What the endpoints of one router share; they find it as `app.state.services` once the app has started."""

    settings: RouterConfig
    relay: Relay
    ledger: Ledger
    metrics: Metrics
    observer: Observer
    fleet: Fleet
    max_body_bytes: int
    tenants: TenantMetrics
    drain: Drain
    flow: FlowControl
    extension: Extension
    divergence: Divergence


class CompletionEndpoint:
    """The ASGI app behind `/v1/chat/completions` or `/v1/completions`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services = scope["app"].state.services
        turn = services.extension.turn(send)
        exchange = Exchange(turn.send, scope["user"], self._endpoint)
        services.observer.started(self._endpoint, exchange.record.request_id, scope["headers"])
        try:
            with services.drain.call():
                prompts = await self._admit(services, exchange, Request(scope, receive))
                if prompts:
                    turn.began(prompts[0][0])
                    with services.fleet.serving(exchange.record.model):
                        await unless_disconnected(receive, self._answer(services, exchange, prompts))
        except RouterError as error:
            if exchange.record.status == CLIENT_LEFT:  # or it was broken off with its answer just sent
                await exchange.fail(error)
        except (ClientDisconnect, OSError):
            pass  # it left while it was sending or being sent to; the status says so
        finally:
            exchange.record.seconds = exchange.seconds()
            services.observer.finished(exchange.record)
            services.tenants.finished(exchange.visit.caller.name, exchange.record.status)
            turn.ended(exchange.record)

    async def _admit(self, services: Services, exchange: Exchange, request: Request) -> list[list[Call]]:
        """A call for each answer, by prompt; nothing after a refusal has been sent."""
        try:
            async with asyncio.timeout(services.settings.request_timeout_s):
                raw = await read_body(request, services.max_body_bytes)
            call = admit(
                raw,
                endpoint=self._endpoint,
                headers=request.headers,
                known_models=exchange.visit.caller.may_call(services.fleet.models),
                request_id=exchange.record.request_id,
            )
            check_body(call.body, services.settings.limits)
            call = exchange.visit.own(call)
            prompts = split(call, services.settings.limits.max_choices)
        except TimeoutError:
            await exchange.fail(RouterError(408, "The request body did not arrive in time.", code="request_timeout"))
        except RouterError as error:
            await exchange.fail(error)
        else:
            if services.settings.log_prompts:
                LOG.info("request=%s body=%s", exchange.record.request_id, json.dumps(call.body))
            record = exchange.record
            record.model, record.stream, record.session = call.model, call.stream, call.session
            return prompts
        return []

    async def _answer(self, services: Services, exchange: Exchange, prompts: list[list[Call]]) -> None:
        if len(prompts) == len(prompts[0]) == 1:
            await self._serve(services, exchange, prompts[0][0])
        else:
            await serve_all(exchange, prompts, partial(self._serve, services))

    async def _serve(self, services: Services, exchange: Exchange, call: Call) -> None:
        try:
            async with services.flow.ticket(call, exchange.visit.caller.name) as ticket:
                exchange.let_in()
                exchange.headers["x-prefillshare-queue-ms"] = f"{ticket.waited_s * 1000:.1f}"
                await self._until_served(services, exchange, replace(call, ticket=ticket))
            exchange.record.status = 200
        except RouterError as error:
            await exchange.fail(error)
        except OSError:
            raise  # from `send`: the client is gone
        except Exception as error:
            text = failure_text(error, with_messages=services.settings.log_prompts)
            LOG.error("request=%s failed in the router: %s", exchange.record.request_id, text)
            await exchange.fail(internal())
        finally:
            services.fleet.pulled(exchange.record.request_id)

    async def _until_served(self, services: Services, exchange: Exchange, call: Call) -> None:
        """Runs both legs, and what has to be run again of them while nothing of the answer has been sent."""
        attempts = Attempts(services.settings.retry)
        prefilled: Prefilled | None = None
        while True:
            try:
                if prefilled is None:
                    prefilled = await self._prefill(services, exchange, call, attempts)
                await self._decode(services, exchange, call, prefilled, attempts)
                return
            except RouterError as error:
                if exchange.streaming or not attempts.again(error):
                    raise
                leg: LegName = "prefill" if prefilled is None else "decode"
                self._note_retry(services, exchange, error, leg, attempts.last_failed)
                if error.code != NOT_CONNECTED:
                    prefilled = None  # a handoff serves once, and nobody knows whether it has
            await attempts.pause()

    def _note_retry(
        self, services: Services, exchange: Exchange, error: RouterError, leg: LegName, worker: str
    ) -> None:
        record = exchange.record
        reason = error.retry or "-"  # not the message: a worker's may quote a prompt
        LOG.warning("request=%s trying again leg=%s worker=%s reason=%s", record.request_id, leg, worker, reason)
        services.metrics.retried(leg, reason)
        record.retries += 1
        if error.code == KV_LOST:
            services.metrics.kv_lost(record.model)
            record.prefilled_again = True

    async def _prefill(self, services: Services, exchange: Exchange, call: Call, attempts: Attempts) -> Prefilled:
        prefilled = await services.relay.prefill(call, attempts)
        call.ticket.prefilled()
        self._account(services, exchange, call, prefilled)
        return prefilled

    async def _decode(
        self, services: Services, exchange: Exchange, call: Call, prefilled: Prefilled, attempts: Attempts
    ) -> None:
        async with services.relay.decode(call, prefilled, attempts) as decoding:
            exchange.record.decode_worker = decoding.worker.name
            exchange.headers["x-prefillshare-decode-worker"] = decoding.worker.name
            exchange.headers["x-prefillshare-placement"] = f"prefill={prefilled.placed_by}; decode={decoding.placed_by}"
            if decoding.turn_s is not None:
                exchange.headers["x-prefillshare-turn-ms"] = f"{decoding.turn_s * 1000:.1f}"
            services.metrics.placed("decode", decoding.placed_by)
            if call.stream:
                await self._stream(services, exchange, call.ticket, decoding, show_usage=asks_for_usage(call))
            else:
                answer = await decoding.answer()
            exchange.record.output_tokens = decoding.output_tokens
        # The worker has done its part: what happens to it from here on does not end the call.
        call.ticket.close()
        if call.stream:
            await exchange.body(b"")
        else:
            await exchange.whole(200, answer)

    def _account(self, services: Services, exchange: Exchange, call: Call, prefilled: Prefilled) -> None:
        worker = exchange.record.prefill_worker = prefilled.worker.name
        services.fleet.handed_over(exchange.record.request_id, prefilled.worker)
        tokens = services.ledger.record(worker, call.model, prefilled.chain, prefilled.handoff.cached_tokens)
        services.extension.prefilled(call, prefilled)
        services.divergence.prefilled(call, prefilled)
        exchange.visit.charge(tokens.prompt)
        first = exchange.record.tokens
        if exchange.owns_prompt:
            if first is None:
                services.metrics.prefilled(call.model, tokens)
            else:
                services.metrics.prefilled_again(call.model, tokens.computed)
        services.metrics.placed("prefill", prefilled.placed_by)
        # A later prefill finds what the first one left: taken for reuse, workers that fail would raise the hit ratio.
        exchange.record.tokens = first or tokens
        exchange.record.prefill_seconds = prefilled.seconds
        exchange.headers |= _headers(prefilled, exchange.record.tokens)
        exchange.prefilled()

    async def _stream(
        self, services: Services, exchange: Exchange, ticket: Ticket, decoding: Decoding, *, show_usage: bool
    ) -> None:
        limit = services.settings.request_timeout_s
        async for events in decoding.stream(show_usage=show_usage):
            # A client that stops reading without closing must not hold a worker's slot for ever.
            async with asyncio.timeout(limit):
                if not exchange.streaming:
                    services.fleet.pulled(exchange.record.request_id)
                    ticket.pulled()
                await exchange.events(events)


def _headers(prefilled: Prefilled, tokens: Attribution) -> dict[str, str]:
    return {
        "x-prefillshare-prefill-worker": prefilled.worker.name,
        "x-prefillshare-placement": f"prefill={prefilled.placed_by}",
        "x-prefillshare-prompt-tokens": str(tokens.prompt),
        "x-prefillshare-computed-tokens": str(tokens.computed),
        "x-prefillshare-reused-tokens": str(tokens.reused),
        "x-prefillshare-reused-from-others-tokens": str(tokens.reused_from_others),
        "x-prefillshare-prefill-ms": f"{prefilled.seconds * 1000:.1f}",
    }
