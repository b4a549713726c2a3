import asyncio
from typing import NoReturn

import pytest

from prefillshare.router.hedge import HEDGED, first_of


class Asked:
    """Coroutines that answer with their own name after a while, and what became of them."""

    def __init__(self) -> None:
        self.cancelled_with: dict[str, tuple[object, ...]] = {}

    async def answer(self, name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError as error:
            self.cancelled_with[name] = error.args
            raise
        return name


async def fail(text: str, seconds: float = 0.0) -> NoReturn:
    await asyncio.sleep(seconds)
    raise ValueError(text)


async def test_nobody_else_is_asked_when_the_first_is_quick() -> None:
    def another() -> NoReturn:
        raise AssertionError

    assert await first_of(Asked().answer("first", 0.0), another, 5.0) == "first"
    with pytest.raises(ValueError, match="first"):
        await first_of(fail("first"), another, 5.0)


async def test_the_faster_answer_is_taken_and_the_slower_one_ended() -> None:
    asked = Asked()
    assert await first_of(asked.answer("first", 30.0), lambda: asked.answer("second", 0.01), 0.01) == "second"
    assert asked.cancelled_with == {"first": (HEDGED,)}
    asked = Asked()
    assert await first_of(asked.answer("first", 0.2), lambda: asked.answer("second", 30.0), 0.01) == "first"
    assert asked.cancelled_with == {"second": (HEDGED,)}


async def test_where_nobody_else_can_be_asked_the_first_is_waited_for() -> None:
    assert await first_of(Asked().answer("first", 0.1), lambda: None, 0.01) == "first"


async def test_one_failure_is_forgotten_and_of_two_the_first_ones_is_told() -> None:
    assert await first_of(Asked().answer("first", 0.2), lambda: fail("second"), 0.01) == "first"
    assert await first_of(fail("first", 0.1), lambda: Asked().answer("second", 0.2), 0.01) == "second"
    with pytest.raises(ValueError, match="first"):
        await first_of(fail("first", 0.1), lambda: fail("second"), 0.01)


@pytest.mark.parametrize("why", [(), ("draining",)])
async def test_both_end_when_nobody_waits_any_more(why: tuple[str, ...]) -> None:
    asked = Asked()
    waiting = asyncio.create_task(first_of(asked.answer("first", 30.0), lambda: asked.answer("second", 30.0), 0.01))
    await asyncio.sleep(0.1)
    waiting.cancel(*why)
    await asyncio.gather(waiting, return_exceptions=True)
    assert asked.cancelled_with == {"first": why, "second": why}  # neither was too slow
