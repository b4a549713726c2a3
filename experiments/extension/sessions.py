"""Agent sessions through a router: chats whose turns wait for a tool in between, and how long a first token takes."""

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp

from experiments.handoff_cost.client import MeasurementFailed
from experiments.handoff_cost.systems import MODULE

CONTEXT_WORDS = 500  # of a session's first message; a word is about a token
NEW_WORDS = 64  # of a tool's result
THINK_S = 1.2  # that a tool takes
# So that the workers are at rest before a session begins.
_REST_S = 0.5
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass(frozen=True, slots=True)
class Plan:
    """`at_once` sessions of `turns` turns each, whose answers but the last have `answer` tokens."""

    name: str
    answer: int
    turns: int
    at_once: int
    rounds: int


# The answer of an agent that calls a tool, one that explains itself, and several of them at a time.
PLANS = (Plan("alone", 32, 2, 1, 6), Plan("alone", 192, 2, 1, 6), Plan("four at once", 128, 4, 4, 2))


async def measure(
    http: aiohttp.ClientSession, routers: Mapping[str, str], plan: Plan, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """A record for every turn but the first ones. The routers, by mode, take turns with sessions that share nothing.

    One more round than asked for comes first and is not recorded.
    """
    draw = random.Random(f"{plan.name} {plan.answer}")
    records: list[dict[str, Any]] = []
    for number in range(-1 if plan.at_once == 1 else 0, plan.rounds):
        order = list(routers) if number % 2 else list(routers)[::-1]
        for mode in order:
            await asyncio.sleep(_REST_S)
            sessions = [_Session(f"{mode}-{number}-{place}", draw.random()) for place in range(plan.at_once)]
            found = await asyncio.gather(*(session.play(http, routers[mode], plan) for session in sessions))
            for place, turns in enumerate(found if number >= 0 else ()):
                records += [
                    {"plan": plan.name, "answer": plan.answer, "mode": mode, "round": number, "session": place, **turn}
                    for turn in turns
                ]
            advance()
    return records


class _Session:
    def __init__(self, name: str, seed: float) -> None:
        self._headers = {"x-session-id": name}
        self._draw = random.Random(seed)
        self._messages = [{"role": "user", "content": self._text(CONTEXT_WORDS)}]

    async def play(self, http: aiohttp.ClientSession, router: str, plan: Plan) -> list[dict[str, Any]]:
        records = []
        for turn in range(plan.turns):
            if turn:
                await asyncio.sleep(THINK_S)
            last = turn == plan.turns - 1
            record, answer = await self._turn(http, router, 8 if last else plan.answer)
            if turn:
                records.append({"turn": turn + 1, **record})
            self._messages.append({"role": "assistant", "content": answer})
            self._messages.append({"role": "user", "content": self._text(NEW_WORDS)})
        return records

    async def _turn(self, http: aiohttp.ClientSession, router: str, tokens: int) -> tuple[dict[str, Any], str]:
        body = {
            "model": MODULE,
            "messages": self._messages,
            "stream": True,
            "temperature": 0,
            "max_completion_tokens": tokens,
            "ignore_eos": True,
        }
        text, first = "", None
        began = perf_counter()
        async with http.post(f"{router}/v1/chat/completions", json=body, headers=self._headers) as response:
            if response.status != 200:
                raise MeasurementFailed(f"{router}: HTTP {response.status}: {(await response.text())[:500]}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise MeasurementFailed(f"{router}: {event['error']}")
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    first = first or perf_counter()
            headers = response.headers
        if first is None or not text:
            raise MeasurementFailed(f"{router}: an answer without text")
        record = {
            "prompt_tokens": int(headers["x-prefillshare-prompt-tokens"]),
            "computed_tokens": int(headers["x-prefillshare-computed-tokens"]),
            "prefill_ms": float(headers["x-prefillshare-prefill-ms"]),
            "first_token_ms": round((first - began) * 1000, 2),
        }
        return record, text

    def _text(self, words: int) -> str:
        return " ".join(self._draw.choices(_WORDS, k=words))
