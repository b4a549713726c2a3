"""Ends a router without breaking calls off: it takes no new ones and finishes those it has."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefillshare.router.errors import RouterError

_RETRY_AFTER_S = 1  # by then a load balancer has another router


class Drain:
    """Of one router; `app.state.drain` is where who stops it finds it."""

    def __init__(self) -> None:
        self.begun = False
        self.in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call.

        Raises:
            RouterError: 503, no more calls are taken.
        """
        if self.begun:
            headers = {"retry-after": str(_RETRY_AFTER_S), "connection": "close"}
            message = "This router is being stopped and takes no more calls."
            raise RouterError(503, message, type="server_error", code="draining", headers=headers)
        self.in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._empty.set()

    def begin(self) -> None:
        self.begun = True

    def give_up(self) -> None:
        """Who waits for the last call waits no longer."""
        self._empty.set()

    async def finished(self, timeout_s: float) -> bool:
        """Waits until the last call has ended. Returns whether it has, within the time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        return not self.in_flight
