"""What is found out about one worker, and what follows for its pool and the calls that it has."""

import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import aiohttp

from prefillshare.open_files import ran_out
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.health.probe import Outcome, Prober
from prefillshare.router.health.progress import Progress, read_progress
from prefillshare.router.pool import Fault, Pool, Worker
from prefillshare.router_config import HealthConfig

LOG = logging.getLogger("prefillshare.router")

_ANSWER_WITHIN_S = 2.0  # of /health and /metrics
_SPREAD = 0.2  # of the time between requests for a token, so that those of many workers do not fall together


class _Seen(NamedTuple):
    progress: Progress
    since: float


class Watcher:
    """Of one worker. `poll` and `want_tokens` are called every second or so, each when it is over."""

    def __init__(
        self,
        pool: Pool,
        worker: Worker,
        http: aiohttp.ClientSession,
        settings: HealthConfig,
        prober: Prober,
        breaker: Breaker,
        probed: Callable[[Worker, Outcome], None],
    ) -> None:
        self._pool = pool
        self._worker = worker
        self._http = http
        self._settings = settings
        self._prober = prober
        self._breaker = breaker
        self._probed = probed
        self._answered = time.monotonic()  # when /health last did
        self._seen: _Seen | None = None  # of the metrics, for as long as they stay the same
        self._probe_at = 0.0
        self._failed_probes = 0  # in a row

    async def poll(self) -> None:
        """Asks for /health.

        A refused connection or a bad status is certain. Silence is not: a busy worker on a shared core misses seconds.
        """
        try:
            async with self._get("/health") as answer:
                reason = "" if answer.status == 200 else f"its health check answered {answer.status}"
        except TimeoutError:
            if "health" not in self._pool.faults(self._worker) and self._is_heard():
                return
            reason = "its health check does not answer"
        except (aiohttp.ClientError, OSError) as error:
            if ran_out(error):
                return  # it has not been asked
            reason = f"cannot connect ({type(error).__name__})"
        if reason:
            self._down(reason, "health")
            if not self._is_heard():
                self._cut()
            return
        self._answered = time.monotonic()
        if "health" in self._pool.faults(self._worker):
            self._failed_probes, self._probe_at = 0, 0.0  # it may be another process by now
        self._up("health")

    def _is_heard(self) -> bool:
        """Whether it has answered its health check or calls in the last seconds."""
        limit = self._settings.silent_after_s
        return time.monotonic() - self._answered < limit or self._pool.silence_s(self._worker) < limit

    async def want_tokens(self) -> None:
        """Looks for signs that it makes tokens, and asks for one where there are none."""
        faults = self._pool.faults(self._worker)
        idle = self._pool.silence_s(self._worker) >= self._settings.token_every_s
        due = time.monotonic() >= self._probe_at
        if "health" in faults:
            return
        if faults:
            if due or not self._failed_probes:
                await self._probe()
        elif self._pool.is_awaited(self._worker):
            await self._judge_progress()
        elif idle and due and not self._pool.is_draining(self._worker):
            await self._probe()

    async def _probe(self) -> None:
        started = time.monotonic()
        before = await self._progress()
        outcome, reason = await self._prober.ask(self._pool, self._worker)
        self._probed(self._worker, outcome)
        seconds = time.monotonic() - started
        if outcome == "token":
            self._pool.heard(self._worker)
            self._breaker.succeeded(self._worker)
            self._up("token")
            self._up("calls")
        elif outcome == "failed":
            self._down(reason, "token")
        elif (
            outcome == "silent"
            and self._pool.silence_s(self._worker) >= seconds  # no call got anything either
            and await self._progress() in (before, None)  # nor one of another router
        ):
            self._down(reason, "token")
            self._cut()
        self._failed_probes = 0 if self._is_up() else self._failed_probes + 1
        self._probe_at = time.monotonic() + self._pause_s()

    def _pause_s(self) -> float:
        """Until the next probe: doubling while they fail."""
        if self._failed_probes:
            longest = self._settings.first_backoff_s * 2 ** (self._failed_probes - 1)
            return min(longest, self._settings.longest_backoff_s) * random.uniform(0.5, 1.0)
        return self._settings.token_every_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)

    async def _judge_progress(self) -> None:
        """Calls wait for it, so its engine must move: by `stalled_after_s`, the second half of it watched."""
        half = self._settings.stalled_after_s / 2
        if self._pool.keeps_waiting_s(self._worker) < half:
            self._seen = None
            return
        progress = await self._progress()
        now = time.monotonic()
        if progress is None:
            return  # then /health does not answer either
        if self._seen is None or progress.blocked or progress != self._seen.progress:
            self._seen = _Seen(progress, now)
        elif now - self._seen.since >= half and self._pool.keeps_waiting_s(self._worker) >= 2 * half:
            self._seen = None
            self._down(f"calls wait, and it has done nothing for {self._settings.stalled_after_s:g} s", "token")
            self._cut()

    async def _progress(self) -> Progress | None:
        try:
            async with self._get("/metrics") as answer:
                return read_progress(await answer.text()) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    def _get(self, path: str) -> "aiohttp.client._RequestContextManager":
        return self._http.get(self._worker.url + path, timeout=aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S))

    def _is_up(self) -> bool:
        return not self._pool.faults(self._worker)

    def _up(self, fault: Fault) -> None:
        if self._pool.mark_up(self._worker, fault):
            LOG.info("worker=%s up", self._worker.name)

    def _down(self, reason: str, fault: Fault) -> None:
        if self._pool.mark_down(self._worker, reason, fault):
            LOG.warning("worker=%s down reason=%r", self._worker.name, reason)

    def _cut(self) -> None:
        if calls := self._pool.cut(self._worker):
            LOG.warning("worker=%s ended calls=%d", self._worker.name, calls)
