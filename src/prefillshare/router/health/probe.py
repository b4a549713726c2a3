"""Asks a worker for one real token. That it answers `/health` only says that its HTTP server lives."""

import asyncio
import json
import uuid
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import aiohttp

from prefillshare.open_files import ran_out
from prefillshare.router.call import Call
from prefillshare.router.errors import KV_LOST, RouterError, worker_refused
from prefillshare.router.fleet import Fleet
from prefillshare.router.legs import Handoff, decode_body, prefill_body, read_prefill
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute

# Shorter than a block, so that it never enters a prefix cache; more than one token, so that there is KV to hand over.
_PROMPT = "Are you still there?"

_TRANSFER = "kv_transfer_params"

# token: it made one. failed: it answered, and not with a token. silent: it did not answer in time. unknown: what it
# would have needed was missing, it is full, it could not get the KV, which may be the prefill worker's fault, or it
# could not be asked.
Outcome = Literal["token", "failed", "silent", "unknown"]


class Answer(NamedTuple):
    outcome: Outcome
    reason: str = ""


class Prober:
    """Asks workers of the fleet."""

    def __init__(self, http: aiohttp.ClientSession, fleet: Fleet, timeout_s: float) -> None:
        """`timeout_s` is for each leg."""
        self._http = http
        self._fleet = fleet
        self._timeout_s = timeout_s

    async def ask(self, pool: Pool, worker: Worker) -> Answer:
        """One token from `worker` of `pool`.

        A prefill worker is asked for a plain completion of its base, which may have no module at the moment, and which
        leaves no blocks leased; a decode worker, which serves nothing without a handoff, behind the least busy prefill
        worker of its base.
        """
        if worker.role == "prefill":
            base = self._fleet.base_of(pool).name
            call = _call(base)
            plain = {name: value for name, value in prefill_body(call, base).items() if name != _TRANSFER}
            return await self._token(call, worker, plain)
        found = next(iter(self._fleet.modules_of(pool).items()), None)
        if found is None:
            return Answer("unknown", "no model is routed to it")
        model, route = found
        call = _call(model)
        handoff = await self._prefill(call, route)
        if isinstance(handoff, Answer):
            return handoff
        return await self._token(call, worker, decode_body(call, handoff))

    async def _prefill(self, call: Call, route: ModelRoute) -> Handoff | Answer:
        workers = route.prefill.ready()
        if not workers:
            return Answer("unknown", f"no {route.prefill.name} worker is up")
        worker = min(workers, key=route.prefill.load)
        try:
            answer = await self._post(call, worker, prefill_body(call, route.base))
            return read_prefill(call, worker, answer)
        except (RouterError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Answer("unknown", f"{worker.name} did not prefill for it ({type(error).__name__})")

    async def _token(self, call: Call, worker: Worker, body: Mapping[str, Any]) -> Answer:
        try:
            answer = await self._post(call, worker, body)
        except RouterError as error:
            outcome: Outcome = "unknown" if error.code == KV_LOST or error.retry == "worker_busy" else "failed"
            return Answer(outcome, f"asked for a token it refused ({error.status} {error.code or ''})")
        except TimeoutError:
            return Answer("silent", f"asked for a token it said nothing for {self._timeout_s:g} s")
        except aiohttp.ClientError as error:
            if ran_out(error):
                return Answer("unknown", "the router has too many files open to ask it")
            return Answer("failed", f"asked for a token it closed the connection ({type(error).__name__})")
        except ValueError:
            return Answer("failed", "asked for a token it sent no JSON")
        if _tokens(answer) != 1:
            return Answer("failed", "asked for a token it sent none")
        return Answer("token")

    async def _post(self, call: Call, worker: Worker, body: Mapping[str, Any]) -> object:
        url, headers = f"{worker.url}/v1/{call.endpoint}", {"x-request-id": call.request_id}
        async with asyncio.timeout(self._timeout_s), self._http.post(url, json=body, headers=headers) as response:
            raw = await response.read()
        if response.status != 200:
            raise worker_refused(worker.name, response.status, raw)
        return json.loads(raw)


def _call(model: str) -> Call:
    body = {"model": model, "prompt": _PROMPT, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    return Call(f"probe-{uuid.uuid4().hex}", "completions", model, body, False, None)


def _tokens(answer: object) -> int | None:
    """How many tokens an answer says that it has."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage.get("completion_tokens") if isinstance(usage, dict) else None
