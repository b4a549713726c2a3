"""Asks a second worker when the first one takes long, and takes the answer that comes first."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

HEDGED = "hedged"  # what the slower one is cancelled with

T = TypeVar("T")


async def first_of(
    first: Coroutine[Any, Any, T], another: Callable[[], Coroutine[Any, Any, T] | None], after_s: float
) -> T:
    """What `first` returns, or, if that takes longer than `after_s`, what the faster of `first` and `another` does.

    One that fails while the other runs is forgotten; when both have failed, the first one's error is raised. Nothing
    runs any more when this returns or raises, however it ends.
    """
    tasks = [asyncio.create_task(first)]
    why = None  # nobody waits any more
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if not tasks[0].done() and (rival := another()):
            tasks.append(asyncio.create_task(rival))
        running = set(tasks)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done and not task.cancelled() and task.exception() is None:
                    why = HEDGED
                    return task.result()
        return tasks[0].result()
    except asyncio.CancelledError as error:
        why = error.args[0] if error.args else None
        raise
    finally:
        for task in tasks:
            task.cancel(why)
        await asyncio.gather(*tasks, return_exceptions=True)
