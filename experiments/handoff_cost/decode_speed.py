"""Time per output token of a decode worker and of plain vLLM, in turns on the same prompts."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from experiments.handoff_cost.client import Answer, MeasurementFailed, prefill, random_tokens, stream
from experiments.handoff_cost.systems import BASE, MODULE

System = Literal["plain", "ours"]
BATCHES = (1, 4)
PROMPT_TOKENS = 256
OUTPUT_TOKENS = 64
# So that the engines are at rest: they go on for a moment after a call, and one holds a core the other computes on.
_REST_S = 0.5


@dataclass(frozen=True, slots=True)
class Urls:
    plain: str
    prefill: str
    decode: str


async def measure(
    http: aiohttp.ClientSession, urls: Urls, rounds: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """A record for every system's turn. Each round has prompts of its own; every other one begins with ours.

    One more round than asked for comes first and is not recorded.
    """
    draw = random.Random(0)
    records = []
    for batch in BATCHES:
        for number in range(-1, rounds):
            prompts = [random_tokens(draw, PROMPT_TOKENS) for _ in range(batch)]
            order: tuple[System, System] = ("plain", "ours") if number % 2 else ("ours", "plain")
            for system in order:
                await asyncio.sleep(_REST_S)
                answers = await _turn(http, urls, system, prompts)
                seconds = time_per_output_token([answer.arrivals for answer in answers])
                if number >= 0:
                    records.append({"batch": batch, "round": number, "system": system, "tpot_ms": seconds * 1000})
                advance()
    return records


async def _turn(http: aiohttp.ClientSession, urls: Urls, system: System, prompts: list[list[int]]) -> list[Answer]:
    """All prompts at once. A decode worker gets them when all are prefilled: a lease lasts longer than that takes."""
    if system == "plain":
        calls = [stream(http, urls.plain, MODULE, prompt, OUTPUT_TOKENS) for prompt in prompts]
    else:
        handoffs = [await prefill(http, urls.prefill, BASE, prompt) for prompt in prompts]
        calls = [
            stream(http, urls.decode, MODULE, prompt, OUTPUT_TOKENS, handoff=handoff)
            for prompt, handoff in zip(prompts, handoffs, strict=True)
        ]
    return await asyncio.gather(*calls)


def time_per_output_token(arrivals: Sequence[Sequence[float]]) -> float:
    """Seconds between a stream's tokens while all streams were decoding; mean over the streams.

    That time begins when the last stream has its second token and ends with the first stream's last. Each stream is
    measured between its own tokens inside it, so that it does not matter which of a step's tokens arrives first.

    Args:
        arrivals: of every token of every stream, in seconds on one clock.

    Raises:
        MeasurementFailed: a stream has fewer than two tokens in that time.
    """
    begin = max(stream[1] for stream in arrivals)
    end = min(stream[-1] for stream in arrivals)
    means = []
    for stream_arrivals in arrivals:
        inside = [at for at in stream_arrivals if begin <= at <= end]
        if len(inside) < 2:
            raise MeasurementFailed("the streams did not run at the same time")
        means.append((inside[-1] - inside[0]) / (len(inside) - 1))
    return sum(means) / len(means)
