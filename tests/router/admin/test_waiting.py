import time

from prefillshare.router.admin.waiting import busy, until


async def test_the_condition_is_looked_at_once_in_any_case() -> None:
    assert await until(lambda: True, 0)
    started = time.monotonic()
    assert not await until(lambda: False, 0)
    assert time.monotonic() - started < 0.5


async def test_waiting_ends_when_the_condition_holds_or_the_time_is_up() -> None:
    answers = iter([False, False, True])
    assert await until(lambda: next(answers), 5)
    started = time.monotonic()
    assert not await until(lambda: False, 0.1)
    assert 0.1 <= time.monotonic() - started < 2


def test_who_is_refused_is_told_the_ways_out() -> None:
    error = busy("Worker a", 2)
    assert (error.status, error.code, error.headers["retry-after"]) == (409, "busy", "1")
    assert "wait_s" in error.message
    assert "force" in error.message
