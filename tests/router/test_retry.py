import asyncio

import pytest

from prefillshare.router import retry
from prefillshare.router.errors import bad_request, worker_failed
from prefillshare.router.retry import Attempts
from prefillshare.router_config import RetryConfig

FAILED = worker_failed("prefill-0", "died")


def test_a_call_has_so_many_retries_and_none_for_its_own_mistake() -> None:
    attempts = Attempts(RetryConfig(max_retries=2))
    assert not attempts.again(bad_request("no"))
    assert [attempts.again(FAILED) for _ in range(3)] == [True, True, False]
    assert not Attempts(RetryConfig(max_retries=0)).again(FAILED)


async def test_pauses_are_random_up_to_a_length_that_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []
    slept: list[float] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high / 2

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(retry.random, "uniform", uniform)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    attempts = Attempts(RetryConfig(max_retries=4, first_pause_s=0.1, longest_pause_s=0.3))
    while attempts.again(FAILED):
        await attempts.pause()
    assert asked == [(0, 0.1), (0, 0.2), (0, 0.3), (0, 0.3)]
    assert slept == [0.05, 0.1, 0.15, 0.15]
