"""How long calls take, and from that how long others will wait."""

from weakref import WeakKeyDictionary

from prefillshare.router.pool import Pool

_WEIGHT = 0.1  # of the last call in the mean


class ServiceTimes:
    """By decode pool: the mean time from a call's ticket to its end, the last calls counting most."""

    def __init__(self) -> None:
        self._mean_s: WeakKeyDictionary[Pool, float] = WeakKeyDictionary()

    def took(self, pool: Pool, seconds: float) -> None:
        mean = self._mean_s.get(pool, seconds)
        self._mean_s[pool] = mean + _WEIGHT * (seconds - mean)

    def typical_s(self, pool: Pool) -> float | None:
        return self._mean_s.get(pool)

    def expect(self, pool: Pool, tokens: int, in_flight_tokens: int) -> float:
        """Seconds until so many waiting tokens have been let in; 0 while nothing is known.

        By Little's law the tokens in flight leave at their number over the time that each of them stays.
        """
        return tokens / in_flight_tokens * self._mean_s.get(pool, 0.0) if in_flight_tokens else 0.0
