"""SIGINT, SIGTERM and SIGHUP as a request to stop: first cleanly, then at once."""

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self


class StopSignals:
    """While entered, the first signal cancels the task that entered it and every further one calls `kill`.

    The task sees a CancelledError, cleans up and asks `exit_code` what to exit with. `on_first` is told after that, and
    stops nothing by failing.
    """

    def __init__(self, *, on_first: Callable[[signal.Signals], None], kill: Callable[[], None]) -> None:
        self._on_first = on_first
        self._kill = kill
        self.received: signal.Signals | None = None  # the first one

    @property
    def exit_code(self) -> int | None:
        """130 after SIGINT, as shells expect of an interrupted command; 0 after the signals by which a
        supervisor asks for a clean stop; None without any."""
        if self.received is None:
            return None
        return 130 if self.received is signal.SIGINT else 0

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._caught = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            self._caught.append(signal.SIGHUP)
        for number in self._caught:
            self._loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._caught:
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.received is not None:
            self._kill()
            return
        self.received = number
        self._task.cancel()
        self._on_first(number)
