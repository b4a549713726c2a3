"""Waiting for calls that a change must not cut off."""

import asyncio
import time
from collections.abc import Callable

from prefillshare.router.errors import RouterError

_POLL_S = 0.05


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds within so many seconds; it is looked at once in any case."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def busy(what: str, calls: int) -> RouterError:
    """The refusal of a change that would cut off so many calls."""
    message = (
        f"{what} has {calls} call(s) under way. Wait for them with ?wait_s=SECONDS, or go on without them with "
        "?force=true."
    )
    return RouterError(409, message, code="busy", headers={"retry-after": "1"})
