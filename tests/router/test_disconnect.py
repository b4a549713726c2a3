import asyncio

import pytest
from starlette.types import Message

from prefillshare.router.disconnect import unless_disconnected


class Client:
    """`receive` of a client that stays until `leave` is called."""

    def __init__(self) -> None:
        self._left = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}


async def test_work_of_a_client_that_stays_is_finished() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(True)

    assert await unless_disconnected(Client().receive, work())
    assert done


async def test_work_is_cancelled_and_waited_for_when_the_client_leaves() -> None:
    client, cleaned_up = Client(), []

    async def work() -> None:
        client.leave()
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            cleaned_up.append(True)

    assert not await unless_disconnected(client.receive, work())
    assert cleaned_up


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await unless_disconnected(Client().receive, work())


async def test_cancelling_the_request_cancels_the_work() -> None:
    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    request = asyncio.create_task(unless_disconnected(Client().receive, work()))
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert cancelled
