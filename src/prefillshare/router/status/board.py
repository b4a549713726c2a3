"""What the status page shows: of the last minutes, and since the router started.

A finished call costs a few additions, whatever the number of sessions; everything else is done when somebody looks.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefillshare import __version__
from prefillshare.percentile import percentile
from prefillshare.router.divergence import Notice
from prefillshare.router.pool import Pool
from prefillshare.router.record import CallRecord
from prefillshare.router.route import ModelRoute, pools_of
from prefillshare.router.sessions import SessionKey

WINDOW_S = 300.0
BAR_S = 5  # a bar of the calls' chart
MAX_CALLS = 10_000  # of the window; at more than 33 calls a second the percentiles are of a shorter time
MAX_SESSIONS = 10_000
KEPT_S = 1.0  # how long a snapshot is good for, however many are looking


@dataclass(slots=True)
class _Seen:
    """A call of the window. Durations in seconds."""

    at: float
    ok: bool
    seconds: float
    first_token: float | None
    per_token: float | None
    prompt: int
    reused: int
    reused_from_others: int


class Board:
    """Shows nothing that a client has sent: names are those of the deployment file."""

    def __init__(
        self,
        routes: Mapping[str, ModelRoute],
        clock: Callable[[], float] = time.monotonic,
        pools: Sequence[Pool] | None = None,
        notices: Callable[[], Sequence[Notice]] = list,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`wall_clock`, which may be set at any time, gives seconds since 1970, for what is shown as such; all else
        goes by `clock`. Routes and pools may change; without `pools` they are the routes'."""
        self._routes = routes
        self._pools = pools_of(routes.values()) if pools is None else pools
        self._clock = clock
        self._wall_clock = wall_clock
        self._notices = notices
        self._started = clock()
        self._calls: deque[_Seen] = deque(maxlen=MAX_CALLS)
        self._bars: deque[list[int]] = deque(maxlen=int(WINDOW_S) // BAR_S + 1)  # [number, calls, of these failed]
        self._sessions: OrderedDict[SessionKey, float] = OrderedDict()  # the one seen last is the last
        self._totals = dict.fromkeys(("calls", "failed", "prompt", "reused", "reused_from_others", "output"), 0)
        self._paid: dict[tuple[str, str], int] = {}  # tokens by (model that reused them, model that had paid)
        self._kept: tuple[float, dict[str, Any]] = (-math.inf, {})
        self.waiting: Callable[[Pool], tuple[int, int]] = lambda pool: (0, 0)  # calls and tokens in a pool's queue

    def finished(self, call: CallRecord) -> None:
        now = self._clock()
        tokens = call.tokens
        counts = (tokens.prompt, tokens.reused, tokens.reused_from_others) if tokens else (0, 0, 0)
        self._calls.append(
            _Seen(now, call.ok, call.seconds, call.first_token_seconds, call.seconds_per_output_token(), *counts)
        )
        self._count_in_bar(now, call.ok)
        if call.session is not None:
            self._sessions[call.session] = now
            self._sessions.move_to_end(call.session)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        for name, amount in zip(("prompt", "reused", "reused_from_others"), counts, strict=True):
            self._totals[name] += amount
        self._totals["calls"] += 1
        self._totals["failed"] += not call.ok
        self._totals["output"] += call.output_tokens or 0
        for payer, paid in tokens.payers.items() if tokens else ():
            self._paid[call.model, payer] = self._paid.get((call.model, payer), 0) + paid

    def snapshot(self) -> dict[str, Any]:
        """The page's JSON. Times are seconds since 1970, durations seconds; null where nothing was measured."""
        now = self._clock()
        taken, snapshot = self._kept
        if now - taken >= KEPT_S:
            snapshot = self._take(now)
            self._kept = (now, snapshot)
        return snapshot

    def _count_in_bar(self, now: float, ok: bool) -> None:
        number = int(now) // BAR_S
        if not self._bars or self._bars[-1][0] != number:
            self._bars.append([number, 0, 0])
        self._bars[-1][1] += 1
        self._bars[-1][2] += not ok

    def _take(self, now: float) -> dict[str, Any]:
        models, shown_now = list(self._routes), self._wall_clock()
        return {
            "version": __version__,
            "now": shown_now,
            "started": shown_now - (now - self._started),
            "workers": [row for pool in self._pools for row in _workers(pool)],
            "models": [
                {"name": name, "base": route.base, "prefill": route.prefill.name, "decode": route.decode.name}
                for name, route in self._routes.items()
            ],
            "notices": [notice._asdict() for notice in self._notices()],
            "sessions": self._active_sessions(now),
            "queue": self._queue(),
            "window": self._window(now),
            "totals": dict(self._totals),
            "reuse": [[self._paid.get((model, payer), 0) for payer in models] for model in models],
        }

    def _queue(self) -> dict[str, int]:
        waiting = [self.waiting(pool) for pool in self._pools]
        return {"calls": sum(calls for calls, _ in waiting), "tokens": sum(tokens for _, tokens in waiting)}

    def _active_sessions(self, now: float) -> int:
        """Those with a call in the window; counted from the one seen last."""
        active = 0
        for seen in reversed(self._sessions.values()):
            if now - seen > WINDOW_S:
                break
            active += 1
        return active

    def _window(self, now: float) -> dict[str, Any]:
        calls = [call for call in self._calls if now - call.at <= WINDOW_S]
        full = len(calls) == MAX_CALLS  # then the window is as long as the calls reach back
        seconds = now - calls[0].at if full else min(WINDOW_S, now - self._started)
        good = [call for call in calls if call.ok]
        return {
            "seconds": WINDOW_S,
            "calls": len(calls),
            "failed": len(calls) - len(good),
            "calls_per_second": len(calls) / max(seconds, 1.0),
            "prompt_tokens": sum(call.prompt for call in calls),
            "reused_tokens": sum(call.reused for call in calls),
            "reused_from_others_tokens": sum(call.reused_from_others for call in calls),
            "first_token": _percentiles([call.first_token for call in good if call.first_token is not None]),
            "per_token": _percentiles([call.per_token for call in good if call.per_token is not None]),
            "duration": _percentiles([call.seconds for call in good]),
            "bar_seconds": BAR_S,
            "bars": self._recent_bars(now),
        }

    def _recent_bars(self, now: float) -> list[list[int]]:
        """[calls, of these failed] for every bar of the window, the one under way last."""
        last = int(now) // BAR_S
        known = {number: counts for number, *counts in self._bars}
        return [known.get(number, [0, 0]) for number in range(last - int(WINDOW_S) // BAR_S + 1, last + 1)]


def _workers(pool: Pool) -> list[dict[str, Any]]:
    return [
        {
            "name": worker.name,
            "role": worker.role,
            "pool": pool.name,
            "up": pool.is_up(worker),
            "draining": pool.is_draining(worker),
            "since": pool.since(worker),
            "in_flight": pool.in_flight(worker),
            "reason": pool.reason(worker),
        }
        for worker in pool.workers
    ]


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {f"p{share}": percentile(ordered, share / 100) for share in (50, 95, 99)}
