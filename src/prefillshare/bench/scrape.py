"""What a worker's /metrics say: totals, and by how much they have moved."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

Totals = Mapping[str, float]


def totals(text: str) -> dict[str, float]:
    """Counters, and the sums and counts of histograms, each summed over its labels."""
    return _summed(text, lambda name: name.endswith(("_total", "_sum", "_count")))


def gauges(text: str, *names: str) -> dict[str, float]:
    """The gauges of these names, each summed over its labels.

    Only their lines are parsed. A worker has six hundred, mostly of histograms: parsing all, once a second, took the
    driver a fiftieth of a core for each worker, from systems that share two.
    """
    lines = "".join(line for line in text.splitlines(keepends=True) if line.startswith(names))
    return _summed(lines, lambda name: name in names)


def growth(before: Totals, after: Totals) -> dict[str, float]:
    """By how much each total has grown; one that is new started at 0."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


async def fetch(http: aiohttp.ClientSession, url: str) -> str:
    """A worker's metrics as text. Raises aiohttp.ClientError when it does not answer."""
    async with http.get(f"{url}/metrics") as response:
        response.raise_for_status()
        return await response.text()


async def scrape(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    return totals(await fetch(http, url))


def _summed(text: str, wanted: Callable[[str], bool]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if wanted(sample.name):
                found[sample.name] += sample.value
    return dict(found)
