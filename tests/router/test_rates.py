import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.rates import Bucket, RateLimited, RateLimits, Rates, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limited(rates: Rates) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        rates.enter()
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def test_requests_are_let_in_as_they_fill_up() -> None:
    clock = Clock()
    rates = Rates(RateLimits(requests_per_minute=2), clock)
    for _ in range(2):
        rates.enter()
    error = limited(rates)
    assert (error.kind, error.type, error.headers["retry-after"]) == ("requests", "requests", "30")
    clock.now += 29.9
    assert limited(rates).headers["retry-after"] == "1"
    clock.now += 0.2
    rates.enter()
    limited(rates)


def test_tokens_may_be_overdrawn_and_are_waited_for() -> None:
    clock = Clock()
    rates = Rates(RateLimits(tokens_per_minute=600), clock)
    rates.enter()
    rates.charge(900)
    error = limited(rates)
    assert (error.kind, error.type, error.headers["retry-after"]) == ("tokens", "tokens", "31")
    clock.now += float(error.headers["retry-after"])
    rates.enter()


def test_calls_at_a_time_are_counted_until_they_end() -> None:
    rates = Rates(RateLimits(max_concurrent=1), Clock())
    rates.enter()
    assert limited(rates).kind == "concurrent"
    rates.leave()
    rates.enter()


def test_a_refused_call_counts_nowhere() -> None:
    clock = Clock()
    rates = Rates(RateLimits(requests_per_minute=60, max_concurrent=1), clock)
    rates.enter()
    for _ in range(100):
        limited(rates)
    assert rates.headers()["x-ratelimit-remaining-requests"] == "59"


def test_headers_say_what_is_left() -> None:
    clock = Clock()
    rates = Rates(RateLimits(requests_per_minute=60, tokens_per_minute=6000), clock)
    rates.enter()
    rates.charge(9000)
    assert rates.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30s",
    }
    assert Rates(RateLimits()).headers() == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0201, "21ms"), (1.5, "1.5s"), (59.9, "59.9s"), (60, "1m0s"), (360, "6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 100), st.integers(0, 2000)), max_size=30))
def test_a_bucket_never_gives_more_than_it_got(per_minute: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    taken, began = 0, clock.now
    for wait, units in steps:
        clock.now += wait
        if bucket.seconds_until(1) == 0:
            bucket.take(units)
            taken += units
            most = per_minute + (clock.now - began) * per_minute / 60
            assert taken <= most + units
        else:
            clock.now += bucket.seconds_until(1)
            assert bucket.level() == pytest.approx(1, abs=1e-3) or bucket.level() > 1
