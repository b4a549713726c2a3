import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import ASGIApp

from prefillshare.router.call import Call
from prefillshare.router.errors import KV_LOST, RouterError
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.health.breaker import Breaker
from prefillshare.router.placement.chunks import Chain
from prefillshare.router.placement.placement import HasRoom, Placed, Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.relay import Relay, open_http
from prefillshare.router.retry import Attempts
from prefillshare.router.route import ModelRoute
from prefillshare.router.turns import Turns
from prefillshare.router_config import RetryConfig, RouterConfig
from tests.router.fakes import FakeWorker, Served, UnlimitedTicket, decode_worker, prefill_worker, wait_for

CALL = Call("id", "completions", "sql", {"model": "sql", "prompt": "hello"}, False, ("user", "u"))
STREAM = Call("id", "completions", "sql", {"model": "sql", "prompt": "hello", "stream": True}, True, None)
SETTINGS = RouterConfig(request_timeout_s=5.0, connect_timeout_s=1.0)
UNLIMITED = UnlimitedTicket()


class Bench:
    """A relay and its pools, filled by the test."""

    def __init__(self, serve: Callable[[ASGIApp], Served], relay: Callable[[Placement, RouterConfig], Relay]) -> None:
        self._serve = serve
        self._relay = relay
        self.pools: list[Pool] = []

    def worker(self, fake: FakeWorker, name: str) -> Worker:
        url = self._serve(fake.app()).url
        return prefill_worker(name, url) if fake.model == "base" else decode_worker(name, url)

    def relay(self, prefill: list[Worker], sql: list[Worker], settings: RouterConfig = SETTINGS) -> Relay:
        other = Pool("decode/json", [decode_worker("json-0")])
        self.pools = [Pool("prefill", prefill), Pool("decode/sql", sql), other]
        for pool in self.pools:
            for worker in pool.workers:
                pool.mark_up(worker)
        routes = {"sql": ModelRoute("base", *self.pools[:2]), "json": ModelRoute("base", self.pools[0], other)}
        return self._relay(Placement(routes), settings)

    def in_flight(self) -> int:
        return sum(int(str(row["in_flight"])) for pool in self.pools for row in pool.report())

    def down(self) -> list[str]:
        return [worker.name for pool in self.pools for worker in pool.workers if not pool.is_up(worker)]


@pytest.fixture
async def bench(serve: Callable[[ASGIApp], Served]) -> AsyncIterator[Bench]:
    sessions = []

    def relay(placement: Placement, settings: RouterConfig) -> Relay:
        sessions.append(open_http(settings))
        return Relay(sessions[-1], settings, placement, Breaker(5))

    bench = Bench(serve, relay)
    yield bench
    assert bench.in_flight() == 0
    for session in sessions:
        await session.close()


@pytest.fixture
def dead() -> str:
    """The address of a port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def unreachable() -> Iterator[str]:
    """The address of a listener whose queue is full, so that connecting to it takes for ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        queue = [socket.socket() for _ in range(4)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"
        for waiting in queue:
            waiting.close()


def attempts() -> Attempts:
    return Attempts(RetryConfig())


async def complete(relay: Relay, tries: Attempts | None = None, ticket: Ticket = UNLIMITED) -> bytes:
    tries = tries or attempts()
    prefilled = await relay.prefill(CALL, ticket, tries)
    async with relay.decode(CALL, ticket, prefilled, tries) as decoding:
        return await decoding.answer()


async def failure(relay: Relay, tries: Attempts | None = None) -> RouterError:
    with pytest.raises(RouterError) as caught:
        await complete(relay, tries)
    return caught.value


async def test_the_kv_goes_from_the_prefill_worker_to_a_decode_worker_of_the_model(bench: Bench) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    answer = await complete(bench.relay([bench.worker(base, "prefill-0")], [bench.worker(sql, "sql-0")]))
    assert b'"text":"sql read hello"' in answer
    assert base.bodies[0]["kv_transfer_params"]["do_remote_decode"] is True
    assert sql.bodies[0]["kv_transfer_params"]["remote_engine_id"] == "engine"
    assert base.headers[0]["x-request-id"] == sql.headers[0]["x-request-id"] == "id"


@pytest.mark.parametrize("kind", ["dead", "unreachable"])
async def test_the_next_try_meets_another_prefill_worker(
    bench: Bench, kind: str, request: pytest.FixtureRequest
) -> None:
    base = FakeWorker("base")
    workers = [prefill_worker("prefill-0", request.getfixturevalue(kind)), bench.worker(base, "prefill-1")]
    relay, tries = bench.relay(workers, [decode_worker()]), attempts()
    error = await failure(relay, tries)
    assert (error.status, error.retry, error.headers["retry-after"]) == (503, "not_connected", "1")
    assert bench.down() == ["prefill-0"]
    assert (await relay.prefill(CALL, UNLIMITED, tries)).worker.name == "prefill-1"
    # The session has moved with its KV.
    assert (await relay.prefill(CALL, UNLIMITED, attempts())).worker.name == "prefill-1"


async def test_the_next_try_meets_another_decode_worker_with_the_kv_that_is_there(bench: Bench, dead: str) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    relay = bench.relay([bench.worker(base, "prefill-0")], [decode_worker("sql-0", dead), bench.worker(sql, "sql-1")])
    tries = attempts()
    prefilled = await relay.prefill(CALL, UNLIMITED, tries)
    with pytest.raises(RouterError, match="sql-0: cannot connect"):
        async with relay.decode(CALL, UNLIMITED, prefilled, tries):
            pass
    async with relay.decode(CALL, UNLIMITED, prefilled, tries) as decoding:
        assert b"sql read hello" in await decoding.answer()
    assert bench.down() == ["sql-0"]


async def test_a_worker_that_failed_the_call_is_asked_again_when_there_is_no_other(bench: Bench) -> None:
    base, sql = FakeWorker("base", behaviour="500"), FakeWorker("sql")
    relay, tries = bench.relay([bench.worker(base, "prefill-0")], [bench.worker(sql, "sql-0")]), attempts()
    assert (await failure(relay, tries)).status == 502
    base.behaviour = "ok"
    assert b"sql read hello" in await complete(relay, tries)


@pytest.mark.parametrize(("reason", "second"), [("pull_failed", "prefill-1"), ("preempted", "prefill-0")])
async def test_kv_that_could_not_be_read_is_sought_at_another_prefill_worker(
    bench: Bench, reason: str, second: str
) -> None:
    """Where a decode worker had it and gave it up, the first one still knows the prompt."""
    sql = FakeWorker("sql", refusals=[reason])
    workers = [bench.worker(FakeWorker("base"), f"prefill-{n}") for n in range(2)]
    relay, tries = bench.relay(workers, [bench.worker(sql, "sql-0")]), attempts()
    error = await failure(relay, tries)
    assert (error.code, error.retry) == ("kv_lost", reason)
    assert (await relay.prefill(CALL, UNLIMITED, tries)).worker.name == second


async def test_a_session_stays_where_it_was_served_whoever_was_asked_besides(bench: Bench) -> None:
    slow, slower = FakeWorker("base", pause=threading.Event()), FakeWorker("base", behaviour="hangs")
    workers = [bench.worker(slow, "prefill-0"), bench.worker(slower, "prefill-1")]
    settings = SETTINGS.model_copy(update={"retry": RetryConfig(hedge_after_s=0.05)})
    relay = bench.relay(workers, [decode_worker()], settings)
    serving = asyncio.create_task(relay.prefill(CALL, UNLIMITED, attempts()))
    await asyncio.to_thread(wait_for, lambda: slower.bodies)
    assert slow.pause
    slow.pause.set()
    assert (await serving).worker.name == "prefill-0"
    assert (await relay.prefill(CALL, UNLIMITED, attempts())).placed_by == "session"
    assert len(slower.bodies) == 1


class Hedged(UnlimitedTicket):
    """Notes who had the faster leg 1, where that was not the first."""

    def __init__(self, full: Collection[Worker] = ()) -> None:
        super().__init__()
        self._full = full
        self.faster: list[str] = []

    def full(self) -> Collection[Worker]:
        return self._full

    def prefilled_by(self, worker: Worker) -> None:
        self.faster.append(worker.name)


async def test_whoever_was_asked_besides_has_room_and_is_told_of_when_it_was_faster(bench: Bench) -> None:
    slow, other = FakeWorker("base", pause=threading.Event()), FakeWorker("base")
    workers = [bench.worker(slow, "prefill-0"), bench.worker(other, "prefill-1")]
    settings = SETTINGS.model_copy(update={"retry": RetryConfig(hedge_after_s=0.05)})
    relay, ticket = bench.relay(workers, [decode_worker()], settings), Hedged()
    assert (await relay.prefill(CALL, ticket, attempts())).worker.name == "prefill-1"
    assert ticket.faster == ["prefill-1"]

    relay, ticket = bench.relay(workers, [decode_worker()], settings), Hedged(full=workers)
    serving = asyncio.create_task(relay.prefill(CALL, ticket, attempts()))
    await asyncio.sleep(0.3)
    assert not serving.done()
    assert slow.pause
    slow.pause.set()
    assert (await serving).worker.name == "prefill-0"
    assert ticket.faster == []
    assert len(other.bodies) == 1


async def test_without_a_decode_worker_nothing_is_prefilled(bench: Bench, dead: str) -> None:
    base = FakeWorker("base")
    relay = bench.relay([bench.worker(base, "prefill-0")], [decode_worker("sql-0", dead)])
    assert (await failure(relay)).retry == "not_connected"
    error = await failure(relay)
    assert (error.status, error.retry) == (503, None)
    assert "decode/sql" in error.message
    assert len(base.bodies) == 1


class Untaken(UnlimitedTicket):
    """Notes whether leg 2 is said to be taken up by nobody."""

    told = False

    def not_taken(self) -> None:
        self.told = True


@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_a_router_that_can_open_no_more_files_blames_no_worker(
    bench: Bench, leg: str, no_files_left: Callable[[], AbstractContextManager[None]]
) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    relay = bench.relay([bench.worker(base, "prefill-0")], [bench.worker(sql, "sql-0")])
    ticket, tries = Untaken(), attempts()

    async def serve() -> None:
        with no_files_left() if leg == "base" else nullcontext():
            prefilled = await relay.prefill(CALL, ticket, tries)
        with no_files_left():
            async with relay.decode(CALL, ticket, prefilled, tries):
                pass

    with pytest.raises(RouterError) as caught:
        await serve()
    error = caught.value
    assert (error.status, error.code, error.headers["retry-after"]) == (503, "out_of_files", "1")
    assert error.retry is None
    assert (bench.down(), tries.failed_workers) == ([], set())
    assert ticket.told == (leg == "sql")  # nobody pulls what leg 1 has left
    assert b"sql read hello" in await complete(relay)


@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_a_leg_ends_when_its_worker_is_found_down(bench: Bench, leg: str) -> None:
    """The worker keeps the connection and says nothing, as one that was stopped."""
    fakes = {"base": FakeWorker("base"), "sql": FakeWorker("sql")}
    fakes[leg].behaviour = "silent"
    workers = {model: bench.worker(fake, f"{model}-0") for model, fake in fakes.items()}
    relay = bench.relay([workers["base"]], [workers["sql"]])
    pool = bench.pools[0 if leg == "base" else 1]
    failing = asyncio.create_task(failure(relay))
    await asyncio.to_thread(wait_for, lambda: fakes[leg].bodies)
    pool.mark_down(workers[leg], "does not answer")
    assert pool.cut(workers[leg]) == 1
    error = await asyncio.wait_for(failing, 2.0)
    assert (error.status, error.code, error.retry) == (502, "worker_lost", "worker_lost")
    assert f"{leg}-0" in error.message
    assert "does not answer" in error.message
    assert pool.cut(workers[leg]) == 0


async def test_a_stream_ends_when_its_worker_is_found_down(bench: Bench) -> None:
    sql = FakeWorker("sql", behaviour="stalls")
    worker = bench.worker(sql, "sql-0")
    relay, tries = bench.relay([bench.worker(FakeWorker("base"), "prefill-0")], [worker]), attempts()
    got = []

    async def read() -> None:
        async with relay.decode(STREAM, UNLIMITED, await relay.prefill(STREAM, UNLIMITED, tries), tries) as decoding:
            async for events in decoding.stream():
                got.append(events)

    reading = asyncio.create_task(read())
    await asyncio.to_thread(wait_for, lambda: got)
    bench.pools[1].cut(worker)
    with pytest.raises(RouterError) as caught:
        await asyncio.wait_for(reading, 2.0)
    assert caught.value.code == "worker_lost"


@pytest.fixture
async def turned(bench: Bench) -> tuple[Relay, Turns, FakeWorker, Worker]:
    """A relay whose decode worker shares its device, with that device's turns."""
    sql = FakeWorker("sql")
    worker = replace(bench.worker(sql, "sql-0"), device="core 1")
    relay = bench.relay([bench.worker(FakeWorker("base"), "prefill-0")], [worker])
    relay._turns = turns = Turns(60.0)
    return relay, turns, sql, worker


@asynccontextmanager
async def another_computes(turns: Turns) -> AsyncIterator[float | None]:
    other = Worker("json-0", "decode", "", "core 1")
    async with turns.of(Pool("decode/json", [other]), other) as waited_s:
        yield waited_s


async def until_leg_2(bench: Bench) -> None:
    """Until a call has a decode worker, be it that it waits for its turn there."""
    pool = bench.pools[1]
    await asyncio.to_thread(wait_for, lambda: pool.in_flight(pool.workers[0]))


async def test_leg_2_is_sent_when_its_turn_comes(bench: Bench, turned: tuple[Relay, Turns, FakeWorker, Worker]) -> None:
    relay, turns, sql, worker = turned
    ticket = Noting(bench)
    async with another_computes(turns):
        call = asyncio.create_task(complete(relay, ticket=ticket))
        await until_leg_2(bench)
        await asyncio.sleep(0.2)
        assert (sql.bodies, ticket.sends) == ([], 0)
        assert bench.pools[1].in_flight(worker) == 1  # no other call takes its room
        assert not bench.pools[1].is_awaited(worker)  # so that nobody takes it for stalled
    assert b"sql read hello" in await call
    assert ticket.sends == 1
    async with asyncio.timeout(30), another_computes(turns):
        pass  # the call's turn has ended with it


async def test_an_answer_says_how_long_its_turn_was_waited_for(
    bench: Bench, turned: tuple[Relay, Turns, FakeWorker, Worker]
) -> None:
    relay, turns, _, _ = turned
    waits: list[float | None] = []

    async def called() -> None:
        tries = attempts()
        async with relay.decode(CALL, UNLIMITED, await relay.prefill(CALL, UNLIMITED, tries), tries) as decoding:
            waits.append(decoding.turn_s)

    async with another_computes(turns):
        call = asyncio.create_task(called())
        await until_leg_2(bench)
        await asyncio.sleep(0.2)
    await call
    relay._turns = Turns(0.0)
    await called()
    first, without = waits
    assert first is not None
    assert first > 0.1
    assert without is None


async def test_a_worker_that_goes_down_ends_the_calls_that_wait_for_their_turn(
    bench: Bench, turned: tuple[Relay, Turns, FakeWorker, Worker]
) -> None:
    relay, turns, sql, worker = turned
    async with another_computes(turns):
        call = asyncio.create_task(failure(relay))
        await until_leg_2(bench)
        bench.pools[1].mark_down(worker, "died")
        bench.pools[1].cut(worker)
        assert (await asyncio.wait_for(call, 30.0)).code == "worker_lost"
    assert sql.bodies == []


async def test_a_worker_keeps_a_call_waiting_from_its_turn_on(
    bench: Bench, turned: tuple[Relay, Turns, FakeWorker, Worker]
) -> None:
    relay, turns, sql, worker = turned
    sql.behaviour = "hangs"
    async with another_computes(turns):
        call = asyncio.create_task(complete(relay))
        await until_leg_2(bench)
        await asyncio.sleep(0.3)
        turn_at = time.monotonic()
    await asyncio.to_thread(wait_for, lambda: sql.bodies)
    assert bench.pools[1].is_awaited(worker)
    assert bench.pools[1].keeps_waiting_s(worker) <= time.monotonic() - turn_at
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


class Noting(UnlimitedTicket):
    """Notes what is in flight on decode workers when leg 2 is said to be over."""

    sends = 0

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.in_flight: list[int] = []
        self._bench = bench

    def sent(self) -> None:
        self.sends += 1

    def decoded(self) -> None:
        self.in_flight.append(self._bench.in_flight())


@pytest.mark.parametrize(("refusals", "code"), [([], None), (["preempted"], KV_LOST)])
async def test_the_ticket_learns_when_leg_2_is_over_however_it_ends(
    bench: Bench, refusals: list[str], code: str | None
) -> None:
    base = bench.worker(FakeWorker("base"), "prefill-0")
    relay = bench.relay([base], [bench.worker(FakeWorker("sql", refusals=refusals), "sql-0")])
    ticket, tries, ended = Noting(bench), attempts(), None
    prefilled = await relay.prefill(CALL, ticket, tries)
    try:
        async with relay.decode(CALL, ticket, prefilled, tries) as decoding:
            await decoding.answer()
            assert ticket.in_flight == []
    except RouterError as error:
        ended = error.code
    assert (ended, ticket.in_flight) == (code, [0])


async def test_leg_1_is_placed_by_the_chain_that_the_ticket_has(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = bench.relay([bench.worker(FakeWorker("base"), "prefill-0")], [decode_worker()])
    placed_by: list[Chain] = []
    place = Placement.prefill

    def noted(self: Placement, model: str, session: Any, chain: Chain, *rest: Any) -> Any:
        placed_by.append(chain)
        return place(self, model, session, chain, *rest)

    monkeypatch.setattr(Placement, "prefill", noted)
    ticket = UnlimitedTicket("another prompt")
    await relay.prefill(CALL, ticket, attempts())
    assert placed_by == [ticket.prompt]


class Choosy(UnlimitedTicket):
    """Has room on the second worker of each pool alone. Notes what it is asked and told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def room_to_prefill(self) -> HasRoom:
        return self._room("to prefill")

    def prefills_on(self, worker: Worker) -> None:
        self.heard.append(worker.name)

    def room_to_decode(self) -> HasRoom:
        return self._room("to decode")

    def decodes_on(self, placed: Placed) -> Placed:
        self.heard.append(placed.worker.name)
        return placed._replace(tokens=999)

    def _room(self, leg: str) -> HasRoom:
        self.heard.append(leg)
        return lambda worker, tokens: worker.name.endswith("-1")


async def test_workers_are_chosen_by_the_tickets_room_which_is_told_of_the_choice(bench: Bench) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    prefill, decode = ([bench.worker(fake, f"{fake.model}-{n}") for n in range(2)] for fake in (base, sql))
    relay, tries, ticket = bench.relay(prefill, decode), attempts(), Choosy()
    tries.failed_workers.update((prefill[1], decode[1]))  # so that the choice takes two tries, and ends with -0
    prefilled = await relay.prefill(CALL, ticket, tries)
    async with relay.decode(CALL, ticket, prefilled, tries) as decoding:
        assert bench.pools[1].load(decode[0]) == 999
        await decoding.answer()
    assert ticket.heard == ["to prefill", "base-0", "to decode", "sql-0"]
    tries.failed_workers.clear()
    await relay.prefill(CALL, ticket, tries)
    assert ticket.heard[-2:] == ["to prefill", "base-1"]


async def test_a_client_that_does_not_read_is_not_the_workers_silence(bench: Bench) -> None:
    worker = bench.worker(FakeWorker("sql", behaviour="stalls"), "sql-0")
    relay, tries = bench.relay([bench.worker(FakeWorker("base"), "prefill-0")], [worker]), attempts()
    async with relay.decode(STREAM, UNLIMITED, await relay.prefill(STREAM, UNLIMITED, tries), tries) as decoding:
        assert bench.pools[1].is_awaited(worker)
        stream = aiter(decoding.stream())
        await anext(stream)
        assert not bench.pools[1].is_awaited(worker)
        more = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.1)
        assert bench.pools[1].is_awaited(worker)
        more.cancel()
        await asyncio.gather(more, return_exceptions=True)


async def test_what_a_worker_sends_is_a_sign_of_life(bench: Bench) -> None:
    base, sql = bench.worker(FakeWorker("base"), "prefill-0"), bench.worker(FakeWorker("sql"), "sql-0")
    relay = bench.relay([base], [sql])
    await asyncio.sleep(0.2)
    silent = bench.pools[0].silence_s(base), bench.pools[1].silence_s(sql)
    asked_at = time.monotonic()
    await complete(relay)
    assert min(silent) >= 0.2
    assert max(bench.pools[0].silence_s(base), bench.pools[1].silence_s(sql)) <= time.monotonic() - asked_at


@pytest.mark.parametrize(("behaviour", "status"), [("500", 502), ("404", 502), ("400", 400), ("503", 503)])
@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_a_worker_that_refuses_ends_the_leg(bench: Bench, leg: str, behaviour: str, status: int) -> None:
    fakes = {model: [FakeWorker(model), FakeWorker(model)] for model in ("base", "sql")}
    for fake in fakes[leg]:
        fake.behaviour = behaviour
    workers = {
        model: [bench.worker(fake, f"{model}-{n}") for n, fake in enumerate(fakes[model])] for model in ("base", "sql")
    }
    error = await failure(bench.relay(workers["base"], workers["sql"]))
    assert error.status == status
    assert "no such thing" in error.message
    ended_at, pool = time.monotonic(), bench.pools[leg == "sql"]
    for worker in workers[leg]:  # it has answered: the next call does not go on with that one's wait
        with pool.waiting(worker, lambda: None) as following:
            assert following.since >= ended_at
    assert sum(len(fake.bodies) for fake in fakes[leg]) == 1
    if leg == "base":
        assert not any(fake.bodies for fake in fakes["sql"])


@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_a_worker_that_drops_the_connection_ends_the_call(bench: Bench, leg: str) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    worker = {"base": bench.worker(base, "base-0"), "sql": bench.worker(sql, "sql-0")}

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        worker[leg] = prefill_worker("base-0", url) if leg == "base" else decode_worker("sql-0", url)
        relay = bench.relay([worker["base"]], [worker["sql"]])
        error = await failure(relay)
    assert error.status == 502
    assert (len(base.bodies), len(sql.bodies)) == ((0, 0) if leg == "base" else (1, 0))
    assert f"{leg}-0" in error.message
    assert bench.down() == [f"{leg}-0"]


@pytest.mark.parametrize(
    "params", [{"remote_host": None}, {"remote_block_ids": []}, {"do_remote_prefill": False}, {"remote_port": None}]
)
async def test_without_kv_no_decode_worker_is_asked(bench: Bench, params: dict[str, Any]) -> None:
    base, sql = FakeWorker("base", params=params), FakeWorker("sql")
    error = await failure(bench.relay([bench.worker(base, "prefill-0")], [bench.worker(sql, "sql-0")]))
    assert (error.status, error.message) == (502, "worker prefill-0: prefill returned no KV")
    assert not sql.bodies


@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_a_silent_worker_is_given_up(bench: Bench, leg: str) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    silent = {"base": base, "sql": sql}[leg]
    silent.behaviour = "silent"
    settings = RouterConfig(request_timeout_s=1.0, connect_timeout_s=1.0)
    relay = bench.relay([bench.worker(base, "base-0")], [bench.worker(sql, "sql-0")], settings)
    error = await failure(relay)
    assert error.status == 504
    assert f"{leg}-0" in error.message
    await asyncio.to_thread(wait_for, lambda: silent.aborted)


async def test_leaving_a_stream_early_makes_the_worker_abort(bench: Bench) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql", behaviour="stalls")
    relay = bench.relay([bench.worker(base, "prefill-0")], [bench.worker(sql, "sql-0")])
    tries = attempts()
    async with relay.decode(STREAM, UNLIMITED, await relay.prefill(STREAM, UNLIMITED, tries), tries) as decoding:
        assert bench.in_flight() == 1
        async for events in decoding.stream():
            assert b'"text":"sql"' in events
            break
    await asyncio.to_thread(wait_for, lambda: sql.aborted)
