"""What a worker's /metrics say about one request: how far its counters have moved."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from experiments.handoff_cost.client import MeasurementFailed

Totals = Mapping[str, float]

# vLLM observes this once for every request, when it has ended.
_REQUESTS = "vllm:request_queue_time_seconds_count"
_PATIENCE_S = 10.0


def totals(text: str) -> dict[str, float]:
    """Counters, and the sums and counts of histograms, each summed over its labels."""
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_sum", "_count")):
                found[sample.name] += sample.value
    return dict(found)


def growth(before: Totals, after: Totals) -> dict[str, float]:
    """By how much each total has grown; one that is new started at 0."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


async def scrape(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    async with http.get(f"{url}/metrics") as response:
        response.raise_for_status()
        return totals(await response.text())


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
