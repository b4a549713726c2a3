"""Which workers can serve the calls of one decode module."""

from collections.abc import Iterable
from dataclasses import dataclass

from prefillshare.instructions import Placement
from prefillshare.router.pool import Pool


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """Where the calls of a decode module go, and how their prompts are made.

    Modules of one base have the same `prefill` pool and modules that share decode workers the same `decode` pool, the
    very object: so a worker's calls are counted once, whichever module they name.
    """

    base: str  # the name under which the prefill workers serve the base
    prefill: Pool
    decode: Pool
    instructions: Placement = "in_place"  # where the module's prompts carry the instructions of the role
    tool_call_parser: str | None = None  # by which its decode workers find tool calls in answers
    identity: str = ""  # the base's; without it no worker can join while the router runs


def pools_of(routes: Iterable[ModelRoute]) -> list[Pool]:
    """Every pool once, prefill pools first.

    Raises:
        ValueError: two pools have one name, or workers of one name; metrics, the ledger and sessions go by these.
    """
    routes = list(routes)
    pools = list(dict.fromkeys([*(route.prefill for route in routes), *(route.decode for route in routes)]))
    for kind, names in (
        ("pools", [pool.name for pool in pools]),
        ("workers", [worker.name for pool in pools for worker in pool.workers]),
    ):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {kind} are called {', '.join(twice)}")
    return pools
