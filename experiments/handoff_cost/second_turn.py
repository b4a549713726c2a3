"""Time to first token through the router: the first turn of a session against the second, and where it goes."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from experiments.handoff_cost.client import Answer, MeasurementFailed, random_tokens, stream
from experiments.handoff_cost.scrape import growth_by_one_request
from experiments.handoff_cost.systems import MODULE
from prefillshare.bench.scrape import Totals, scrape

CONTEXT_TOKENS = 2000
ANSWER_TOKENS = 32
NEW_TOKENS = 64
_REST_S = 0.5


@dataclass(frozen=True, slots=True)
class Urls:
    router: str
    prefill: str
    decode: str


async def measure(
    http: aiohttp.ClientSession, urls: Urls, sessions: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """A record for each of a session's two turns. One more session than asked for comes first and is not recorded.

    Raises:
        MeasurementFailed: a first turn found something in the prefill worker's cache, or a second one nothing.
    """
    draw = random.Random(1)
    records = []
    for number in range(-1, sessions):
        prompt = random_tokens(draw, CONTEXT_TOKENS)
        for turn in (1, 2):
            await asyncio.sleep(_REST_S)
            answer, record = await _turn(http, urls, prompt)
            _require_cache(turn, record)
            if number >= 0:
                records.append({"session": number, "turn": turn, **record})
            prompt = prompt + answer.tokens + random_tokens(draw, NEW_TOKENS)
            advance()
    return records


async def _turn(http: aiohttp.ClientSession, urls: Urls, prompt: list[int]) -> tuple[Answer, dict[str, Any]]:
    before = [await scrape(http, url) for url in (urls.prefill, urls.decode)]
    answer = await stream(http, urls.router, MODULE, prompt, ANSWER_TOKENS)
    prefill = await growth_by_one_request(http, urls.prefill, before[0])
    decode = await growth_by_one_request(http, urls.decode, before[1])
    record = {
        "prompt_tokens": int(answer.headers["x-prefillshare-prompt-tokens"]),
        "computed_tokens": int(answer.headers["x-prefillshare-computed-tokens"]),
        "pulled_mb": round(decode["vllm:nixl_bytes_transferred_sum"] / 1e6, 1),
        "first_token_ms": round(answer.first_token_s * 1000, 2),
        "parts_ms": parts_ms(answer.first_token_s, answer.headers, prefill, decode),
    }
    return answer, record


def _require_cache(turn: int, record: Mapping[str, Any]) -> None:
    everything = record["computed_tokens"] == record["prompt_tokens"]
    if everything != (turn == 1):
        raise MeasurementFailed(
            f"turn {turn} computed {record['computed_tokens']} of {record['prompt_tokens']} tokens, so the turns "
            "cannot be compared; does anything else call these workers?"
        )


def parts_ms(first_token_s: float, headers: Mapping[str, str], prefill: Totals, decode: Totals) -> dict[str, float]:
    """Where the time to the first token went, in milliseconds; the parts add up to it.

    Args:
        first_token_s: as the client saw it.
        headers: the router's.
        prefill: by how much this request has moved the prefill worker's totals.
        decode: and the decode worker's.
    """
    leg1 = float(headers["x-prefillshare-prefill-ms"])
    queue1 = _ms(prefill, "vllm:request_queue_time_seconds")
    compute1 = _ms(prefill, "vllm:request_prefill_time_seconds")
    decode_total = _ms(decode, "vllm:time_to_first_token_seconds")
    step = _ms(decode, "vllm:request_prefill_time_seconds")
    # vLLM's own figure is the time to the scheduling of the first step, which waits for the KV.
    measured = decode.get("prefillshare_handoff_seconds_count") == 1
    handoff = _ms(decode, "prefillshare_handoff_seconds" if measured else "vllm:request_queue_time_seconds")
    parts = {
        "prefill_queue": queue1,
        "prefill_compute": compute1,
        "prefill_rest": leg1 - queue1 - compute1,
        "handoff": handoff,
        "decode_step": step,
        "decode_rest": decode_total - handoff - step,
        "router": first_token_s * 1000 - leg1 - decode_total,
    }
    return {name: round(ms, 2) for name, ms in parts.items()}


def _ms(totals: Totals, histogram: str) -> float:
    return totals[f"{histogram}_sum"] * 1000
