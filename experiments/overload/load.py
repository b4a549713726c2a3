"""Calls at a rate, or as many at a time: what was asked for and when it was answered."""

import asyncio
import json
import random
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import aiohttp

from experiments.handoff_cost.client import MeasurementFailed, random_tokens

PROMPT_TOKENS = (64, 256)
OUTPUT_TOKENS = (16, 64)
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Times in seconds since the phase began."""

    sent: float
    ended: float
    status: int
    tokens: int  # of the answer
    first_token: float | None = None
    waited_s: float = 0.0  # in the router's queue
    retry_after: int | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    def record(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Clients:
    """Of one model behind a router. No two prompts share anything."""

    def __init__(self, http: aiohttp.ClientSession, url: str, model: str, seed: int) -> None:
        self._http = http
        self._url = f"{url}/v1/completions"
        self._model = model
        self._draw = random.Random(seed)

    async def closed(self, at_once: int, seconds: float) -> list[Answer]:
        """So many clients, each of which calls again when it has its answer, or when it was told to come back."""
        began = perf_counter()

        async def client() -> list[Answer]:
            answers = []
            while perf_counter() - began < seconds:
                answers.append(await self._call(began))
                await asyncio.sleep(answers[-1].retry_after or 0)
            return answers

        found = await asyncio.gather(*(client() for _ in range(at_once)))
        return [answer for answers in found for answer in answers]

    async def open(self, rate: float, seconds: float) -> list[Answer]:
        """Calls that arrive as a Poisson process of `rate` a second, whatever becomes of those before."""
        began = perf_counter()
        calls: list[asyncio.Task[Answer]] = []
        due = self._draw.expovariate(rate)
        while due < seconds:
            await asyncio.sleep(max(0.0, began + due - perf_counter()))
            calls.append(asyncio.create_task(self._call(began)))
            due += self._draw.expovariate(rate)
        return list(await asyncio.gather(*calls))

    async def _call(self, began: float) -> Answer:
        most = self._draw.randint(*OUTPUT_TOKENS)
        body = {
            "model": self._model,
            "prompt": random_tokens(self._draw, self._draw.randint(*PROMPT_TOKENS)),
            "max_tokens": most,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        sent = perf_counter() - began
        first = None
        async with asyncio.timeout(PATIENCE_S), self._http.post(self._url, json=body) as response:
            headers = response.headers
            if response.status != 200:
                text = await response.text()
                if response.status != 429:
                    raise MeasurementFailed(f"HTTP {response.status}: {text[:500]}")
                ended = perf_counter() - began
                return Answer(sent, ended, response.status, 0, retry_after=int(headers["retry-after"]))
            async for line in response.content:
                if line.startswith(b"data: {") and "error" in json.loads(line.removeprefix(b"data: ")):
                    raise MeasurementFailed(f"a stream broke off: {line.decode()}")
                first = first or perf_counter() - began
        waited_s = float(headers["x-prefillshare-queue-ms"]) / 1000
        return Answer(sent, perf_counter() - began, 200, most, first, waited_s)
