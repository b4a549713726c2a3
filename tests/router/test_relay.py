import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from starlette.types import ASGIApp

from prefillshare.router.admission import Call
from prefillshare.router.errors import RouterError
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.relay import Relay, open_http
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import RouterConfig
from tests.router.fakes import FakeWorker, Served, decode_worker, prefill_worker, wait_for

CALL = Call("id", "completions", "sql", {"model": "sql", "prompt": "hello"}, False, ("user", "u"))
SETTINGS = RouterConfig(request_timeout_s=5.0, connect_timeout_s=1.0)


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
        return Relay(sessions[-1], settings, placement)

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


async def complete(relay: Relay, call: Call = CALL) -> bytes:
    prefilled = await relay.prefill(call)
    async with relay.decode(call, prefilled) as decoding:
        return await decoding.answer()


async def failure(relay: Relay) -> RouterError:
    with pytest.raises(RouterError) as caught:
        await complete(relay)
    return caught.value


async def test_the_kv_goes_from_the_prefill_worker_to_a_decode_worker_of_the_model(bench: Bench) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    answer = await complete(bench.relay([bench.worker(base, "prefill-0")], [bench.worker(sql, "sql-0")]))
    assert b'"text":"sql read hello"' in answer
    assert base.bodies[0]["kv_transfer_params"]["do_remote_decode"] is True
    assert sql.bodies[0]["kv_transfer_params"]["remote_engine_id"] == "engine"
    assert base.headers[0]["x-request-id"] == sql.headers[0]["x-request-id"] == "id"


async def test_a_prefill_worker_that_cannot_be_reached_is_replaced(bench: Bench, dead: str) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    workers = [prefill_worker("prefill-0", dead), bench.worker(base, "prefill-1")]
    relay = bench.relay(workers, [bench.worker(sql, "sql-0")])
    prefilled = await relay.prefill(CALL)
    assert prefilled.worker.name == "prefill-1"
    assert bench.down() == ["prefill-0"]
    assert (await relay.prefill(CALL)).cached_tokens == 0
    assert len(base.bodies) == 2  # the session has moved with its KV


async def test_a_prefill_worker_whose_connection_is_never_accepted_is_replaced(bench: Bench, unreachable: str) -> None:
    base = FakeWorker("base")
    workers = [prefill_worker("prefill-0", unreachable), bench.worker(base, "prefill-1")]
    prefilled = await bench.relay(workers, [decode_worker()]).prefill(CALL)
    assert prefilled.worker.name == "prefill-1"
    assert bench.down() == ["prefill-0"]


async def test_a_leg_is_tried_on_two_workers_at_most(bench: Bench, dead: str) -> None:
    base = FakeWorker("base")
    workers = [prefill_worker(f"prefill-{n}", dead) for n in range(2)] + [bench.worker(base, "prefill-2")]
    error = await failure(bench.relay(workers, [decode_worker()]))
    assert (error.status, error.headers["retry-after"]) == (503, "1")
    assert "prefill-0" in error.message
    assert not base.bodies


async def test_a_decode_worker_that_cannot_be_reached_is_replaced_by_one_of_the_same_module(
    bench: Bench, dead: str
) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    relay = bench.relay([bench.worker(base, "prefill-0")], [decode_worker("sql-0", dead), bench.worker(sql, "sql-1")])
    assert b"sql read hello" in await complete(relay)
    assert len(base.bodies) == 1  # the KV was still there
    assert bench.down() == ["sql-0"]


async def test_without_a_reachable_decode_worker_the_call_fails(bench: Bench, dead: str) -> None:
    base = FakeWorker("base")
    relay = bench.relay([bench.worker(base, "prefill-0")], [decode_worker("sql-0", dead)])
    error = await failure(relay)
    assert error.status == 503
    assert "decode/sql" in error.message
    assert (await failure(relay)).status == 503
    assert len(base.bodies) == 1  # the second call knew before it had anything prefilled


@pytest.mark.parametrize(("behaviour", "status"), [("500", 502), ("404", 502), ("400", 400), ("503", 503)])
@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_what_a_worker_refuses_is_not_tried_again(bench: Bench, leg: str, behaviour: str, status: int) -> None:
    fakes = {model: [FakeWorker(model), FakeWorker(model)] for model in ("base", "sql")}
    for fake in fakes[leg]:
        fake.behaviour = behaviour
    workers = {
        model: [bench.worker(fake, f"{model}-{n}") for n, fake in enumerate(fakes[model])] for model in ("base", "sql")
    }
    error = await failure(bench.relay(workers["base"], workers["sql"]))
    assert error.status == status
    assert "no such thing" in error.message
    assert sum(len(fake.bodies) for fake in fakes[leg]) == 1
    if leg == "base":
        assert not any(fake.bodies for fake in fakes["sql"])


@pytest.mark.parametrize("leg", ["base", "sql"])
async def test_a_worker_that_drops_the_connection_ends_the_call(bench: Bench, leg: str) -> None:
    base, sql = FakeWorker("base"), FakeWorker("sql")
    crashing = {"base": base, "sql": sql}[leg]
    worker = {"base": bench.worker(base, "base-0"), "sql": bench.worker(sql, "sql-0")}
    relay = bench.relay([worker["base"]], [worker["sql"]])

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        worker[leg] = prefill_worker("base-0", url) if leg == "base" else decode_worker("sql-0", url)
        relay = bench.relay([worker["base"]], [worker["sql"]])
        error = await failure(relay)
    assert (error.status, crashing.bodies) == (502, [])
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
    call = Call("id", "completions", "sql", {"model": "sql", "prompt": "hello", "stream": True}, True, None)
    async with relay.decode(call, await relay.prefill(call)) as decoding:
        assert bench.in_flight() == 1
        async for events in decoding.stream():
            assert b'"text":"sql"' in events
            break
    await asyncio.to_thread(wait_for, lambda: sql.aborted)
