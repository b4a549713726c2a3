"""Ends a router without breaking calls off: it takes no new ones and finishes those it has."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prefillshare.router.errors import RouterError

DRAINING = "draining"  # what calls that are broken off are cancelled with
_RETRY_AFTER_S = 1  # by then a load balancer has another router


class Drain:
    """Of one router; who stops it makes it, and gives it to `create_app`."""

    def __init__(self) -> None:
        self.begun = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call, in the task that serves it.

        Raises:
            RouterError: 503, no more calls are taken, or this one was broken off.
        """
        if self.begun:
            raise _draining("This router is being stopped and takes no more calls.")
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        self._empty.clear()
        try:
            yield
        except asyncio.CancelledError as error:
            if error.args != (DRAINING,):
                raise
            task.uncancel()
            raise _draining("This router is being stopped; the call took longer than it could wait.") from None
        finally:
            self._calls.remove(task)
            if not self._calls:
                self._empty.set()

    def begin(self) -> None:
        self.begun = True

    def break_off(self) -> int:
        """Ends the calls that are still in flight, each with its 503. Returns how many there are."""
        for task in self._calls:
            task.cancel(DRAINING)
        return len(self._calls)

    def give_up(self) -> None:
        """Who waits for the last call waits no longer."""
        self._empty.set()

    async def finished(self, timeout_s: float) -> bool:
        """Waits until the last call has ended. Returns whether it has, within the time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        return not self.in_flight


def _draining(message: str) -> RouterError:
    headers = {"retry-after": str(_RETRY_AFTER_S), "connection": "close"}
    return RouterError(503, message, type="server_error", code=DRAINING, headers=headers)
