"""Pulls of KV under way, as a decode worker's engine sees them: which end too late to be used, and which take too long.

Times are the worker's own (`time.perf_counter`), but for the ends of leases, which are on the prefill workers' clocks.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prefillshare.engine.handoff import Refusal

# A pull must be over this long before the prefill worker may give up the blocks. Its clock is known from the middle of
# the handshake's round trip, which NIXL lets take up to 5 s.
_CLOCK_MARGIN_S = 2.5


@dataclass(slots=True)
class _Read:
    engine_id: str
    lease_end: float  # on that engine's clock
    since: float
    given_up: bool = False


class Reads:
    """By request. A read that is given up is remembered until it has ended: it may still write into its blocks."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._reads: dict[str, _Read] = {}

    def begin(self, request_id: str, engine_id: str, lease_end: float) -> None:
        self._reads[request_id] = _Read(engine_id, lease_end, time.perf_counter())

    def end(self, request_id: str, ahead_s: Mapping[str, float]) -> Refusal | None:
        """Why the KV that has come is not used, if the prefill worker may have given the blocks to another session.

        Heartbeats that extend the lease are not counted: nothing says that the prefill worker heard them.

        Args:
            ahead_s: by engine, how far its clock is ahead, of the engines whose clock is known.
        """
        read = self._reads.pop(request_id, None)
        if read is None or read.given_up:
            return None
        ahead = ahead_s.get(read.engine_id)
        if ahead is None:
            return Refusal("lease_expired", "the prefill worker was lost, and with it the clock that its lease goes by")
        late_s = time.perf_counter() + ahead - (read.lease_end - _CLOCK_MARGIN_S)
        return Refusal("lease_expired", f"the KV came {late_s:.1f} s after its lease had ended") if late_s > 0 else None

    def overdue(self) -> Iterator[tuple[str, Refusal]]:
        """Requests whose KV has not come in time, each once."""
        now = time.perf_counter()
        for request_id, read in self._reads.items():
            if not read.given_up and now - read.since > self._timeout_s:
                read.given_up = True
                message = f"the prefill worker's KV did not come within {self._timeout_s:g} s"
                yield request_id, Refusal("pull_failed", message)
