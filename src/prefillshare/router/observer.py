"""Everything that a router tells of its calls, from one place: metrics, log lines, spans and the status page.

The endpoint says when a call begins and ends, the relay when a leg does.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefillshare.router.drain import DRAINING
from prefillshare.router.errors import RouterError
from prefillshare.router.hedge import HEDGED
from prefillshare.router.log_format import log_call
from prefillshare.router.metrics import Metrics
from prefillshare.router.pool import Worker
from prefillshare.router.record import CallRecord
from prefillshare.router.status.board import Board
from prefillshare.router.tracing import CallTrace, Headers, LegTrace, Tracing

CLIENT_LEFT = "client_left"  # a leg's code when it was given up because nobody waits for it
_REASONS = ((HEDGED,), (DRAINING,))  # what legs are cancelled with that are given up for another reason

_NO_TRACE = CallTrace()
_trace: ContextVar[CallTrace] = ContextVar("prefillshare_call_trace", default=_NO_TRACE)


class Observer:
    """Of one router. Nothing here raises or waits."""

    def __init__(self, metrics: Metrics, board: Board, tracing: Tracing) -> None:
        self._metrics = metrics
        self._board = board
        self._tracing = tracing

    def started(self, endpoint: str, request_id: str, headers: Headers) -> None:
        """A request has arrived. Its legs run in this task or one that it starts, which is how they find its span."""
        self._metrics.started()
        _trace.set(self._tracing.start(endpoint, request_id, headers))

    def finished(self, call: CallRecord) -> None:
        """Of every call that has started, from the same task."""
        self._metrics.finished(call)
        self._board.finished(call)
        _trace.get().end(call)
        _trace.set(_NO_TRACE)
        log_call(call)

    @contextmanager
    def leg(self, worker: Worker, model: str) -> Iterator["Leg"]:
        """Around one leg's work on one worker. Each `Leg.failed` in it, or else what it raises, is the leg's error."""
        started = time.perf_counter()
        with _trace.get().leg(worker, model) as trace:
            leg = Leg(trace)
            try:
                yield leg
            except RouterError as error:
                leg.failed(error.code or error.type)
                raise
            except (asyncio.CancelledError, GeneratorExit, OSError) as error:
                leg.failed(error.args[0] if error.args in _REASONS else CLIENT_LEFT)
                raise
            except Exception:
                leg.failed("internal_error")
                raise
            finally:
                trace.ended(leg.code)
                self._metrics.leg(worker, time.perf_counter() - started, leg.code)


class Leg:
    """`headers` are for the worker."""

    def __init__(self, trace: LegTrace) -> None:
        self.headers = trace.headers
        self.code: str | None = None

    def failed(self, code: str) -> None:
        self.code = code


@contextmanager
def unobserved(worker: Worker, model: str) -> Iterator[Leg]:
    """In place of `Observer.leg`, where nobody observes."""
    yield Leg(LegTrace())
