"""Time that passes when a test says so, so that it does not matter how fast the machine is."""

import asyncio
import selectors
import time
from collections.abc import Coroutine
from types import ModuleType
from typing import Any

import pytest


class _NoWaiting(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and for nothing that could come")
        self.now += max(timeout, 0.0)
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """Instead of waiting it sets its clock forward. Nothing in it may wait for another thread or a socket."""

    def __init__(self) -> None:
        self._no_waiting = _NoWaiting()
        super().__init__(self._no_waiting)

    def time(self) -> float:
        return self._no_waiting.now


def in_jumping_time(work: Coroutine[Any, Any, None]) -> None:
    loop = JumpingLoop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


class Clock:
    """`time.monotonic` for the modules that it was given to: it stands still, but for `now` being raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.now = time.monotonic()
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def perf_counter(self) -> float:
        return time.perf_counter()
