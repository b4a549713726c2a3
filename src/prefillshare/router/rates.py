"""How much the holder of a key may ask for: requests and prompt tokens per minute, and calls at a time.

Token buckets: each holds one minute's worth, is full at first and fills evenly. How long a prompt is, the router learns
from the prefill worker; so a call is let in as long as the tokens are not used up, and what it takes beyond them is
waited for by the next.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prefillshare.router.errors import RouterError

Kind = Literal["requests", "tokens", "concurrent"]
Clock = Callable[[], float]

_MINUTE_S = 60.0
_RETRY_CONCURRENT_S = 1  # nobody knows when a call under way ends


class Bucket:
    """`per_minute` units a minute; may be overdrawn."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    def level(self) -> float:
        """Units that are there, below zero when overdrawn."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / _MINUTE_S)
        self._at = now
        return self._level

    def take(self, units: int) -> None:
        self._level = self.level() - units

    def seconds_until(self, units: float) -> float:
        """How long until so many units are there; 0 when they are."""
        return max(0.0, (units - self.level()) * _MINUTE_S / self.per_minute)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


class RateLimited(RouterError):
    """A 429. `kind` says which limit it was."""

    __slots__ = ("kind",)

    def __init__(self, kind: Kind, message: str, seconds: float) -> None:
        super().__init__(
            429,
            message,
            type="tokens" if kind == "tokens" else "requests",  # OpenAI's types
            code="rate_limit_exceeded",
            headers={"retry-after": str(max(1, math.ceil(seconds)))},
        )
        self.kind: Kind = kind


class Rates:
    """The state of one key's limits."""

    def __init__(self, limits: RateLimits, clock: Clock = time.monotonic) -> None:
        self._requests = Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self._max_concurrent = limits.max_concurrent
        self._running = 0

    def enter(self) -> None:
        """Counts a call that begins; `leave` must follow. A call that is refused counts nowhere.

        Raises:
            RateLimited: a limit is reached; its `retry-after` says when the call would be let in.
        """
        if self._max_concurrent is not None and self._running >= self._max_concurrent:
            message = f"This key may have {self._max_concurrent} call(s) at a time; wait until one has ended."
            raise RateLimited("concurrent", message, _RETRY_CONCURRENT_S)
        if self._requests is not None and (wait := self._requests.seconds_until(1)):
            raise _used_up("requests", self._requests, wait)
        if self._tokens is not None and (wait := self._tokens.seconds_until(1)):
            raise _used_up("tokens", self._tokens, wait)
        self._running += 1
        if self._requests is not None:
            self._requests.take(1)

    def leave(self) -> None:
        self._running -= 1

    def charge(self, tokens: int) -> None:
        """Takes a prompt's tokens, whether they are there or not."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers, for the limits that there are."""
        found: dict[str, str] = {}
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level())))
                found[f"x-ratelimit-reset-{kind}"] = duration(bucket.seconds_until(bucket.per_minute))
        return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < _MINUTE_S:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"


def _used_up(kind: Literal["requests", "tokens"], bucket: Bucket, wait_s: float) -> RateLimited:
    what = "requests" if kind == "requests" else "prompt tokens"
    message = f"Rate limit reached for {what}: {bucket.per_minute} per minute. Try again in {duration(wait_s)}."
    return RateLimited(kind, message, wait_s)
