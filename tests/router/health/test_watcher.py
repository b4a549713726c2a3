"""One worker, watched step by step; the times of the settings are short or none."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import aiohttp
import pytest
from starlette.types import ASGIApp

from prefillshare.router import pool as pool_module
from prefillshare.router.errors import worker_failed
from prefillshare.router.fleet import Fleet
from prefillshare.router.health import watcher
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.health.probe import Prober
from prefillshare.router.health.watcher import Watcher
from prefillshare.router.pool import OnWorker, Pool
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import HealthConfig
from tests.router.clocks import Clock
from tests.router.fakes import FakeWorker, Served, decode_worker, prefill_worker

SETTINGS = HealthConfig(
    silent_after_s=0.2,
    token_every_s=0.2,
    token_timeout_s=0.2,
    stalled_after_s=0.4,
    first_backoff_s=0.1,
    longest_backoff_s=0.3,
)


class Bench:
    """A watched prefill worker that is up."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        serve: Callable[[ASGIApp], Served],
        token_timeout_s: float = SETTINGS.token_timeout_s,
    ) -> None:
        self.fake = FakeWorker("base")
        self.server = serve(self.fake.app())
        self.worker = prefill_worker(url=self.server.url)
        self.pool = Pool("prefill", [self.worker])
        self.pool.mark_up(self.worker)
        self.breaker = Breaker(1)
        self.outcomes: list[str] = []
        self.cuts = 0
        route = ModelRoute("base", self.pool, Pool("decode/sql", [decode_worker()]))
        prober = Prober(http, Fleet({"sql": route}), token_timeout_s)
        self.watcher = Watcher(
            self.pool,
            self.worker,
            http,
            SETTINGS,
            prober,
            self.breaker,
            lambda worker, outcome: self.outcomes.append(outcome),
        )

    def call(self) -> AbstractContextManager[OnWorker]:
        """One in flight, which waits for the worker."""
        return self.pool.waiting(self.worker, self._cut)

    def _cut(self) -> None:
        self.cuts += 1

    @property
    def up(self) -> bool:
        return self.pool.is_up(self.worker)

    async def want_tokens(self, seconds: float) -> None:
        """Asks again and again for so long."""
        async with asyncio.timeout(seconds + 5):
            end = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < end:
                await self.watcher.want_tokens()
                await asyncio.sleep(0.02)


@pytest.fixture
async def bench(serve: Callable[[ASGIApp], Served], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(watcher, "_ANSWER_WITHIN_S", 0.1)
    async with aiohttp.ClientSession() as http:
        yield Bench(http, serve)


async def test_silence_is_no_proof_before_it_has_lasted(bench: Bench) -> None:
    bench.fake.behaviour = "silent"
    with bench.call():
        await bench.watcher.poll()
        assert bench.up
        while bench.up:
            await bench.watcher.poll()
        assert bench.pool.reason(bench.worker) == "its health check does not answer"
        assert bench.cuts == 1


async def test_a_worker_that_streams_may_leave_its_health_check_unanswered(bench: Bench) -> None:
    bench.fake.behaviour = "silent"
    with bench.call():
        for _ in range(5):
            bench.pool.heard(bench.worker)
            await bench.watcher.poll()
        assert (bench.up, bench.cuts) == (True, 0)


async def test_a_worker_that_was_never_up_gets_no_credit(bench: Bench) -> None:
    bench.pool.mark_down(bench.worker, "not checked yet")
    bench.fake.behaviour = "silent"
    await bench.watcher.poll()
    assert not bench.up


async def test_a_worker_that_cannot_be_asked_stays_what_it_is(
    bench: Bench, no_files_left: Callable[[], AbstractContextManager[None]]
) -> None:
    with no_files_left(), bench.call():
        for _ in range(3):
            await bench.watcher.poll()
            await asyncio.sleep(0.1)
        await bench.watcher._probe()
    assert (bench.up, bench.cuts, bench.outcomes) == (True, 0, ["unknown"])
    bench.pool.mark_down(bench.worker, "not checked yet")
    with no_files_left():
        await bench.watcher.poll()
    assert not bench.up


async def test_calls_of_a_worker_that_says_it_is_ill_may_end_by_themselves(bench: Bench) -> None:
    bench.fake.healthy = False
    with bench.call():
        bench.pool.heard(bench.worker)
        await bench.watcher.poll()
        assert (bench.up, bench.cuts) == (False, 0)


async def test_an_idle_worker_is_asked_for_a_token_now_and_then(
    serve: Callable[[ASGIApp], Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiohttp.ClientSession() as http:
        bench = Bench(http, serve, token_timeout_s=30.0)
        clock = Clock(monkeypatch, pool_module, watcher)  # only now: what it took to start the server is over
        await bench.watcher.want_tokens()
        assert bench.outcomes == []  # it has just been started

        async def pass_seconds() -> None:
            for _ in range(50):
                clock.now += 0.02
                await bench.watcher.want_tokens()

        await pass_seconds()
        assert 3 <= len(bench.outcomes) <= 5
        assert set(bench.outcomes) == {"token"}
        bench.pool.drain(bench.worker)
        asked = len(bench.outcomes)
        await pass_seconds()
        assert len(bench.outcomes) == asked


async def test_a_worker_that_has_just_delivered_is_not_asked(bench: Bench) -> None:
    for _ in range(20):
        bench.pool.heard(bench.worker)
        await bench.watcher.want_tokens()
        await asyncio.sleep(0.02)
    assert bench.outcomes == []


@pytest.mark.parametrize(
    ("behaviour", "outcome", "reason"),
    [
        ("hangs", "silent", "asked for a token it said nothing for 0.2 s"),
        ("no token", "failed", "asked for a token it sent none"),
        ("500", "failed", "asked for a token it refused (502 worker_failed)"),
    ],
)
async def test_an_idle_worker_that_makes_no_token_is_down_until_it_does(
    bench: Bench, behaviour: str, outcome: str, reason: str
) -> None:
    bench.fake.behaviour = behaviour
    await bench.want_tokens(0.3)
    await bench.watcher.poll()  # passes all the while
    assert bench.outcomes[0] == outcome
    assert (bench.up, bench.pool.reason(bench.worker)) == (False, reason)
    bench.fake.behaviour = "ok"
    await bench.want_tokens(0.5)
    assert bench.up


async def test_one_that_does_not_answer_because_it_works_for_others_stays_up(bench: Bench) -> None:
    bench.fake.behaviour, bench.fake.busy = "hangs", True
    await bench.want_tokens(0.5)
    assert "silent" in bench.outcomes
    assert bench.up


async def test_an_open_breaker_closes_with_a_token_and_asks_for_it_at_once(bench: Bench) -> None:
    await bench.want_tokens(0.3)  # the next request would not be due yet
    asked = len(bench.outcomes)
    bench.breaker.failed(bench.pool, bench.worker, worker_failed("prefill-0", "answered 500"))
    assert bench.pool.faults(bench.worker) == {"calls"}
    await bench.watcher.want_tokens()
    assert bench.up
    assert len(bench.outcomes) == asked + 1


async def test_the_pauses_between_failing_requests_double_up_to_a_limit(bench: Bench) -> None:
    bench.fake.behaviour = "500"
    bench.pool.mark_down(bench.worker, "5 calls in a row failed", "calls")
    pauses = []
    for _ in range(4):
        await bench.watcher._probe()
        pauses.append(max(bench.watcher._pause_s() for _ in range(200)))
    assert pauses == pytest.approx([0.1, 0.2, 0.3, 0.3], rel=0.1)


async def test_a_stalled_worker_is_down_and_its_calls_end(bench: Bench) -> None:
    bench.fake.behaviour = "hangs"
    with bench.call():
        await bench.want_tokens(0.3)
        assert bench.up
        assert not bench.fake.bodies  # only its metrics are looked at
        while bench.up:
            await bench.watcher.want_tokens()
        assert bench.cuts == 1
        assert bench.pool.reason(bench.worker) == "calls wait, and it has done nothing for 0.4 s"


@pytest.mark.parametrize("life", ["it computes", "it waits for room", "it sends", "only the client is slow"])
async def test_a_worker_that_calls_wait_for_is_not_stalled_while(bench: Bench, life: str) -> None:
    bench.fake.busy = life == "it computes"
    if life == "it waits for room":
        bench.fake.running, bench.fake.waiting = 0, 3
    with bench.call() as call:
        call.for_worker = life != "only the client is slow"
        for _ in range(10):
            if life == "it sends":
                bench.pool.heard(bench.worker)
            await bench.want_tokens(0.1)
    assert (bench.up, bench.cuts) == (True, 0)
    if life != "only the client is slow":
        assert not bench.fake.bodies  # it is never asked for more while it works
