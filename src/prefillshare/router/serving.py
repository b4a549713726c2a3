"""One call from its ticket to the last byte of its answer: both legs, what is run again of them, and who paid."""

import asyncio
import logging

from prefillshare.router.accounting import Attribution
from prefillshare.router.call import Call
from prefillshare.router.errors import KV_LOST, NOT_CONNECTED, RouterError, internal
from prefillshare.router.exchange import Exchange
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.legs import Prefilled, asks_for_usage
from prefillshare.router.metrics import LegName
from prefillshare.router.privacy import failure_text
from prefillshare.router.relay import Decoding
from prefillshare.router.retry import Attempts
from prefillshare.router.services import Services

LOG = logging.getLogger("prefillshare.router")


async def serve(services: Services, exchange: Exchange, call: Call) -> None:
    """Waits for the call's ticket and answers it through the exchange, which is also told of what fails.

    Raises:
        OSError: the client is gone.
    """
    try:
        async with services.flow.ticket(call, exchange.visit.caller.name) as ticket:
            exchange.let_in()
            exchange.headers["x-prefillshare-queue-ms"] = f"{ticket.waited_s * 1000:.1f}"
            await Serving(services, exchange, call, ticket).run()
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


class Serving:
    """What is done for one call that has its ticket, over all that it tries."""

    def __init__(self, services: Services, exchange: Exchange, call: Call, ticket: Ticket) -> None:
        self._services = services
        self._exchange = exchange
        self._call = call
        self._ticket = ticket
        self._attempts = Attempts(services.settings.retry)

    async def run(self) -> None:
        """Runs both legs, and what has to be run again of them while nothing of the answer has been sent."""
        prefilled: Prefilled | None = None
        while True:
            try:
                if prefilled is None:
                    prefilled = await self._prefill()
                await self._decode(prefilled)
                return
            except RouterError as error:
                if self._exchange.streaming or not self._attempts.again(error):
                    raise
                self._note_retry(error, "prefill" if prefilled is None else "decode")
                if error.code != NOT_CONNECTED:
                    prefilled = None  # a handoff serves once, and nobody knows whether it has
            await self._attempts.pause()

    def _note_retry(self, error: RouterError, leg: LegName) -> None:
        record, metrics, worker = self._exchange.record, self._services.metrics, self._attempts.last_failed
        reason = error.retry or "-"  # not the message: a worker's may quote a prompt
        LOG.warning("request=%s trying again leg=%s worker=%s reason=%s", record.request_id, leg, worker, reason)
        metrics.retried(leg, reason)
        record.retries += 1
        if error.code == KV_LOST:
            metrics.kv_lost(record.model)
            record.prefilled_again = True

    async def _prefill(self) -> Prefilled:
        prefilled = await self._services.relay.prefill(self._call, self._ticket, self._attempts)
        self._ticket.prefilled()
        self._account(prefilled)
        return prefilled

    async def _decode(self, prefilled: Prefilled) -> None:
        call, exchange = self._call, self._exchange
        async with self._services.relay.decode(call, self._ticket, prefilled, self._attempts) as decoding:
            exchange.record.decode_worker = decoding.worker.name
            exchange.headers["x-prefillshare-decode-worker"] = decoding.worker.name
            exchange.headers["x-prefillshare-placement"] = f"prefill={prefilled.placed_by}; decode={decoding.placed_by}"
            if decoding.turn_s is not None:
                exchange.headers["x-prefillshare-turn-ms"] = f"{decoding.turn_s * 1000:.1f}"
            self._services.metrics.placed("decode", decoding.placed_by)
            if call.stream:
                await self._stream(decoding)
            else:
                answer = await decoding.answer()
            exchange.record.output_tokens = decoding.output_tokens
        # The worker has done its part: what happens to it from here on does not end the call.
        self._ticket.close()
        if call.stream:
            await exchange.body(b"")
        else:
            await exchange.whole(200, answer)

    def _account(self, prefilled: Prefilled) -> None:
        services, exchange, call = self._services, self._exchange, self._call
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

    async def _stream(self, decoding: Decoding) -> None:
        services, exchange = self._services, self._exchange
        async for events in decoding.stream(show_usage=asks_for_usage(self._call)):
            # A client that stops reading without closing must not hold a worker's slot for ever.
            async with asyncio.timeout(services.settings.request_timeout_s):
                if not exchange.streaming:
                    services.fleet.pulled(exchange.record.request_id)
                    self._ticket.pulled()
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
