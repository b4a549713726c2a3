from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from starlette.types import ASGIApp

from prefillshare.router.fleet import Fleet
from prefillshare.router.health.probe import Answer, Prober
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute
from tests.router.fakes import FakeWorker, Served, decode_worker, prefill_worker


class Bench:
    """One prefill and one decode worker, both up, and who asks them."""

    def __init__(self, http: aiohttp.ClientSession, serve: Callable[[ASGIApp], Served]) -> None:
        self.base, self.sql = FakeWorker("base"), FakeWorker("sql")
        self.prefill = Pool("prefill", [prefill_worker(url=serve(self.base.app()).url)])
        self.decode = Pool("decode/sql", [decode_worker(url=serve(self.sql.app()).url)])
        for pool in (self.prefill, self.decode):
            pool.mark_up(pool.workers[0])
        self.fleet = Fleet({"sql": ModelRoute("base", self.prefill, self.decode)})
        self.prober = Prober(http, self.fleet, timeout_s=0.3)

    async def ask(self, pool: Pool) -> Answer:
        return await self.prober.ask(pool, pool.workers[0])


@pytest.fixture
async def bench(serve: Callable[[ASGIApp], Served]) -> AsyncIterator[Bench]:
    async with aiohttp.ClientSession() as http:
        yield Bench(http, serve)


async def test_a_prefill_worker_is_asked_for_a_token_and_leases_nothing(bench: Bench) -> None:
    assert await bench.ask(bench.prefill) == Answer("token")
    (body,) = bench.base.bodies
    assert (body["model"], body["max_tokens"], body["stream"]) == ("base", 1, False)
    assert "kv_transfer_params" not in body
    assert bench.base.headers[0]["x-request-id"].startswith("probe-")


async def test_what_is_asked_where_no_model_is_routed(bench: Bench) -> None:
    (worker,) = bench.decode.workers
    bench.fleet.remove_module("sql")
    assert await bench.ask(bench.prefill) == Answer("token")
    assert await bench.prober.ask(bench.decode, worker) == Answer("unknown", "no model is routed to it")
    assert not bench.sql.bodies


async def test_a_decode_worker_is_asked_behind_a_prefill_worker_whose_kv_it_takes(bench: Bench) -> None:
    assert await bench.ask(bench.decode) == Answer("token")
    assert bench.base.bodies[0]["kv_transfer_params"]["do_remote_decode"] is True
    assert bench.sql.bodies[0]["kv_transfer_params"]["remote_engine_id"] == "engine"
    assert (bench.sql.bodies[0]["model"], bench.sql.bodies[0]["max_tokens"]) == ("sql", 1)


@pytest.mark.parametrize(
    ("behaviour", "outcome"), [("hangs", "silent"), ("500", "failed"), ("crash", "failed"), ("503", "unknown")]
)
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_what_else_a_worker_does_is_told_apart(bench: Bench, role: str, behaviour: str, outcome: str) -> None:
    fake, pool = (bench.base, bench.prefill) if role == "prefill" else (bench.sql, bench.decode)
    fake.behaviour = behaviour
    answer = await bench.ask(pool)
    assert answer.outcome == outcome
    assert "asked for a token" in answer.reason


async def test_an_answer_without_a_token_is_a_failure(bench: Bench) -> None:
    bench.base.behaviour = "no token"
    assert await bench.ask(bench.prefill) == Answer("failed", "asked for a token it sent none")


@pytest.mark.parametrize("behaviour", ["hangs", "500"])
async def test_a_decode_worker_is_not_judged_by_its_prefill_worker(bench: Bench, behaviour: str) -> None:
    bench.base.behaviour = behaviour
    assert (await bench.ask(bench.decode)).outcome == "unknown"
    bench.prefill.mark_down(bench.prefill.workers[0], "gone")
    assert await bench.ask(bench.decode) == Answer("unknown", "no prefill worker is up")
    assert not bench.sql.bodies


async def test_kv_that_does_not_come_is_nobodys_fault_yet(bench: Bench) -> None:
    bench.sql.refusals = ["pull_failed"]
    assert (await bench.ask(bench.decode)).outcome == "unknown"
