"""Stops the work for a client that has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def unless_disconnected(receive: Receive, work: Coroutine[None, None, None]) -> bool:
    """Runs `work`, and cancels it when the client disconnects. Returns whether it ran to its end.

    The request body must have been read: from then on `receive` returns only to report a disconnect.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    why: tuple[Any, ...] = ()
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if task.cancelled():
            return False
        task.result()
        return True
    except asyncio.CancelledError as error:
        why = error.args
        raise
    finally:
        watcher.cancel()
        task.cancel(*why)  # only matters when this coroutine itself is being cancelled
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
