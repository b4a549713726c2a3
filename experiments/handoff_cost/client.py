"""Streamed completions with the moment at which every token arrived."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp

_TIMEOUT_S = 300.0


class MeasurementFailed(Exception):
    """A call was not answered to its end, or its figures do not mean what they should."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens and their arrivals, on perf_counter's clock.

    `began` is when the request was sent; names of headers are in lower case.
    """

    began: float
    headers: Mapping[str, str]
    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0] - self.began


def open_client(worker_key: str) -> aiohttp.ClientSession:
    # A new connection for every call: a worker closes an idle one after 5 s, perhaps while it is being used again.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    headers = {"authorization": f"Bearer {worker_key}"}
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)


def random_tokens(draw: random.Random, count: int) -> list[int]:
    """Token ids of ordinary words. Random ones cost what text costs, and no two prompts share a start."""
    return [draw.randrange(1000, 40000) for _ in range(count)]


async def prefill(http: aiohttp.ClientSession, url: str, model: str, prompt: list[int]) -> dict[str, Any]:
    """Leg 1 at a prefill worker: the transfer parameters for one decode worker.

    Raises:
        MeasurementFailed: the worker refused the call.
    """
    body = _body(model, prompt, 1) | {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
    async with http.post(f"{url}/v1/completions", json=body) as response:
        await _require_ok(response)
        params: dict[str, Any] = (await response.json())["kv_transfer_params"]
        return params


async def stream(
    http: aiohttp.ClientSession,
    url: str,
    model: str,
    prompt: list[int],
    max_tokens: int,
    *,
    handoff: dict[str, Any] | None = None,
) -> Answer:
    """A greedy answer of exactly `max_tokens` tokens. `handoff` is what `prefill` returned, for a decode worker.

    Raises:
        MeasurementFailed: the call was refused, or the answer broke off.
    """
    body = _body(model, prompt, max_tokens) | {"stream": True}
    if handoff is not None:
        body["kv_transfer_params"] = handoff
    began = perf_counter()
    async with http.post(f"{url}/v1/completions", json=body) as response:
        await _require_ok(response)
        answer = Answer(began, {name.lower(): value for name, value in response.headers.items()})
        async for line in response.content:
            arrived = perf_counter()
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise MeasurementFailed(f"{url}: {event['error']}")
            for choice in event["choices"]:
                answer.tokens.extend(choice["token_ids"])
                answer.arrivals.extend([arrived] * len(choice["token_ids"]))
    if len(answer.tokens) != max_tokens:
        raise MeasurementFailed(f"{url}: {len(answer.tokens)} tokens where {max_tokens} were asked for")
    return answer


def _body(model: str, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


async def _require_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise MeasurementFailed(f"{response.url}: HTTP {response.status}: {(await response.text())[:500]}")
