import asyncio

import pytest

from prefillshare.router.errors import RouterError
from prefillshare.router.pool import Pool
from prefillshare.router.while_up import while_up
from tests.router.fakes import prefill_worker

WORKER = prefill_worker()


@pytest.fixture
def pool() -> Pool:
    return Pool("prefill", [WORKER])


async def wait(pool: Pool, seconds: float) -> str:
    async with while_up(pool, WORKER):
        await asyncio.sleep(seconds)
    return "done"


async def test_a_cut_ends_it_with_the_reason(pool: Pool) -> None:
    waiting = [asyncio.create_task(wait(pool, 30.0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    pool.mark_down(WORKER, "its health check does not answer")
    assert pool.cut(WORKER) == 2
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, RouterError)
        assert error.message == "worker prefill-0: went down: its health check does not answer"


async def test_what_happens_in_it_is_left_alone(pool: Pool) -> None:
    assert await wait(pool, 0.0) == "done"
    with pytest.raises(TimeoutError):  # one of its own
        async with while_up(pool, WORKER), asyncio.timeout(0.01):
            await asyncio.sleep(30.0)
    cancelled = asyncio.create_task(wait(pool, 30.0))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert pool.cut(WORKER) == 0
