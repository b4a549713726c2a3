"""At five times the load, by a clock that jumps: minutes of simulated workers take a second, always the same."""

import asyncio
import random
from typing import NamedTuple

import pytest

from prefillshare.router.call import Call
from prefillshare.router.errors import RouterError
from tests.router.clocks import in_jumping_time
from tests.router.flow.placing import place_decode, place_prefill
from tests.router.flow.test_control import Bench

PREFILL_RATE = 1400.0  # tokens a second
SECONDS = 60.0
AT_ONCE = 16


class Served(NamedTuple):
    sent: float
    ended: float
    tokens: int  # 0: it was refused
    waited: float = 0.0


class Simulation(Bench):
    """A prefill worker that computes one prompt after the other, and a decode worker that slows down with its batch."""

    def __init__(self, queue_share: float) -> None:
        super().__init__(decode=40_000, prefill=4096, queue_share=queue_share, max_wait_s=1000.0)
        self.sql.set_limit(self.sql.workers[0], None, AT_ONCE)
        self.clock = asyncio.get_running_loop().time
        self.flow._clock = self.clock
        self.draw = random.Random(0)
        self.prefilling = asyncio.Lock()
        self.batch = 0

    async def serve(self) -> Served:
        began, prompt, output = self.clock(), self.draw.randint(64, 256), self.draw.randint(16, 64)
        body = {"prompt": [self.draw.randrange(10**6)] * prompt, "max_tokens": output}
        try:
            call = Call("id", "completions", "sql", body, True, None)
            async with self.flow.ticket(call, "") as ticket:
                placed = place_prefill(
                    ticket, lambda room: self.placement.prefill("sql", None, ticket.prompt, has_room=room)
                )
                assert placed
                with self.prefill.lease(placed.worker, placed.tokens):
                    async with self.prefilling:
                        await asyncio.sleep(prompt / PREFILL_RATE)
                ticket.prefilled()
                placed = place_decode(
                    ticket,
                    lambda room: self.placement.decode(
                        "sql", None, self.placement.chain_of(body["prompt"]), has_room=room
                    ),
                )
                assert placed
                with self.sql.lease(placed.worker, placed.tokens):
                    self.batch += 1
                    for _ in range(output):
                        await asyncio.sleep(0.02 + 0.001 * self.batch)
                        ticket.pulled()
                    self.batch -= 1
            return Served(began, self.clock(), output, ticket.waited_s)
        except RouterError:
            return Served(began, self.clock(), 0)

    async def closed(self) -> list[Served]:
        end = self.clock() + SECONDS

        async def client() -> list[Served]:
            answers = []
            while self.clock() < end:
                answers.append(await self.serve())
            return answers

        return [answer for answers in await asyncio.gather(*(client() for _ in range(AT_ONCE))) for answer in answers]

    async def open(self, rate: float) -> list[Served]:
        end, calls = self.clock() + SECONDS, []
        while self.clock() < end:
            calls.append(asyncio.create_task(self.serve()))
            await asyncio.sleep(self.draw.expovariate(rate))
        return await asyncio.gather(*calls)


def p95(answers: list[Served]) -> float:
    seconds = sorted(answer.ended - answer.sent for answer in answers if answer.tokens)
    return seconds[int(0.95 * len(seconds))]


def tokens_per_s(answers: list[Served]) -> float:
    end = answers[0].sent + SECONDS
    return sum(answer.tokens for answer in answers if answer.ended < end) / SECONDS


def test_calls_that_are_let_in_keep_their_latency_and_workers_their_throughput() -> None:
    async def run() -> None:
        simulation = Simulation(queue_share=0.5)
        closed = await simulation.closed()
        over = await simulation.open(5 * len(closed) / SECONDS)
        assert 0.7 < sum(not answer.tokens for answer in over) / len(over) < 0.9
        assert p95(over) < 1.5 * p95(closed)
        assert tokens_per_s(over) > 0.95 * tokens_per_s(closed)
        assert simulation.held() == 0

    in_jumping_time(run())


@pytest.mark.parametrize("share", [0.25, 0.5, 2.0])
def test_the_wait_is_at_most_its_share_of_the_time_that_calls_take(share: float) -> None:
    async def run() -> None:
        simulation = Simulation(queue_share=share)
        over = await simulation.open(60.0)
        steady = [answer for answer in over if answer.tokens and answer.sent > over[0].sent + SECONDS / 3]
        waited = sum(answer.waited for answer in steady) / len(steady)
        service = sum(answer.ended - answer.sent - answer.waited for answer in steady) / len(steady)
        assert 0.7 * share < waited / service < 1.1 * share

    in_jumping_time(run())
