"""What a worker's /metrics say about one request: how far its counters have moved."""

import asyncio
import time

import aiohttp

from experiments.handoff_cost.client import MeasurementFailed
from prefillshare.bench.scrape import Totals, growth, scrape

# vLLM observes this once for every request, when it has ended.
_REQUESTS = "vllm:request_queue_time_seconds_count"
_PATIENCE_S = 10.0


async def growth_by_one_request(http: aiohttp.ClientSession, url: str, before: Totals) -> dict[str, float]:
    """What the request that has just ended added. A worker counts it a moment after its last token.

    Raises:
        MeasurementFailed: it was not counted in time, or was not the only one.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        grown = growth(before, await scrape(http, url))
        requests = grown.get(_REQUESTS, 0.0)
        if requests == 1:
            return grown
        if requests > 1 or time.monotonic() > deadline:
            raise MeasurementFailed(
                f"{url} counted {requests:.0f} requests where one was made; does anything else call it?"
            )
        await asyncio.sleep(0.05)
