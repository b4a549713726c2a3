"""One OpenAI endpoint: lets the request in or refuses it, has its calls served, and notes how it ended."""

import asyncio
import json
import logging
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from prefillshare.router.admission import admit, read_body
from prefillshare.router.call import Call, Endpoint
from prefillshare.router.choices import serve_all, split
from prefillshare.router.disconnect import unless_disconnected
from prefillshare.router.errors import RouterError
from prefillshare.router.exchange import CLIENT_LEFT, Exchange
from prefillshare.router.limits import check_body
from prefillshare.router.services import Services
from prefillshare.router.serving import serve

LOG = logging.getLogger("prefillshare.router")


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
                        await unless_disconnected(receive, _answer(services, exchange, prompts))
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


async def _answer(services: Services, exchange: Exchange, prompts: list[list[Call]]) -> None:
    if len(prompts) == len(prompts[0]) == 1:
        await serve(services, exchange, prompts[0][0])
    else:
        await serve_all(exchange, prompts, partial(serve, services))
