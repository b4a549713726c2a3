"""Takes a worker out of service on which call after call fails, though its health check passes."""

import logging
from collections import Counter
from collections.abc import Callable

from prefillshare.router.errors import WORKER_FAILED, WORKER_TIMED_OUT, RouterError
from prefillshare.router.pool import Pool, Worker

LOG = logging.getLogger("prefillshare.router")

# Errors that are the worker's own doing. Not what the client or the KV's other side caused, and not what the worker's
# health check finds by itself: that it cannot be reached, or says nothing.
_COUNTED = frozenset({WORKER_FAILED, WORKER_TIMED_OUT})


class Breaker:
    """Opens for a worker after so many failures in a row; `Watcher` closes it when the worker makes a token.

    It does not close by itself after a while: the calls that would try it out are clients'. Who adds to `opened` is
    told when it opens.
    """

    def __init__(self, failures: int) -> None:
        self._limit = failures
        self.opened: list[Callable[[Worker], None]] = []
        self._in_a_row: Counter[str] = Counter()  # by the name of the worker

    def succeeded(self, worker: Worker) -> None:
        self._in_a_row.pop(worker.name, None)

    def failed(self, pool: Pool, worker: Worker, error: RouterError) -> None:
        """Of a call that ended with `error`; also of one whose error is not the worker's."""
        if error.code not in _COUNTED:
            return
        self._in_a_row[worker.name] += 1
        count = self._in_a_row[worker.name]
        if count == self._limit:
            LOG.warning("worker=%s breaker=open failures=%d", worker.name, count)
            pool.mark_down(worker, f"{count} calls in a row failed", "calls")
            for tell in self.opened:
                tell(worker)
