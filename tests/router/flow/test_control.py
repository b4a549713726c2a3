"""Calls at a `FlowControl`: who is let in, in which order, and that everything is given back."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from prefillshare.router.call import Call
from prefillshare.router.errors import RouterError
from prefillshare.router.fleet import Routes
from prefillshare.router.flow.capacity import Capacity
from prefillshare.router.flow.control import FlowControl
from prefillshare.router.flow.metrics import FlowMetrics
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.placement.chunks import chain_of_request
from prefillshare.router.placement.placement import Placed, Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import FlowConfig
from tests.router.fakes import decode_worker, prefill_worker
from tests.router.flow.placing import place_decode, place_prefill

TOKENS = 100  # of a call: 90 of its prompt, 10 of its answer


class FakeCapacities:
    def __init__(self) -> None:
        self.kv: dict[str, int] = {}
        self.silent: set[str] = set()
        self.capacity = Capacity()

    def kv_limit(self, worker: Worker) -> int | None:
        return self.kv.get(worker.name)

    def of(self, worker: Worker) -> Capacity:
        return self.capacity

    def has_told(self, worker: Worker) -> bool:
        return worker.name not in self.silent


class Bench:
    """Two models with a decode worker each, `decode` tokens on each; one prefill worker with `prefill` tokens."""

    def __init__(
        self,
        decode: int = TOKENS,
        prefill: int = 10**6,
        sql_workers: int = 1,
        kv_lease_s: float = 30,
        pull_timeout_s: float = 8,
        **config: Any,
    ) -> None:
        self.prefill = Pool("prefill", [prefill_worker("p")])
        self.sql = Pool("decode/sql", [decode_worker(f"sql-{n}") for n in range(sql_workers)])
        self.json = Pool("decode/json", [decode_worker("json-0")])
        self.capacities = FakeCapacities()
        self.pools = (self.prefill, self.sql, self.json)
        for pool in self.pools:
            for worker in pool.workers:
                pool.mark_up(worker)
                if pool is self.prefill:
                    pool.set_limit(worker, prefill)
                else:
                    self.capacities.kv[worker.name] = decode
        self.routes = Routes(
            sql=ModelRoute("base", self.prefill, self.sql), json=ModelRoute("base", self.prefill, self.json)
        )
        self.registry = CollectorRegistry()
        self.placement = Placement(self.routes)
        metrics = FlowMetrics(self.registry, self.pools)
        config = {"queue_share": 1000.0} | config
        self.now = 0.0
        self.flow = FlowControl(
            FlowConfig(**config),
            self.routes,
            self.placement,
            self.capacities,  # type: ignore[arg-type]
            metrics,
            kv_lease_s=kv_lease_s,
            pull_timeout_s=pull_timeout_s,
            clock=lambda: self.now,
        )
        metrics.watch(self.flow.waiting, self.flow.kv, self.flow.bytes_per_token)
        self.log: list[str] = []

    def call(
        self, name: str, model: str = "sql", tenant: str = "", tokens: int = TOKENS, **fields: Any
    ) -> "asyncio.Task[None]":
        return asyncio.create_task(self.run(name, model, tenant, tokens, **fields), name=name)

    async def run(self, name: str, model: str, tenant: str, tokens: int, **fields: Any) -> None:
        await self.serve(Call(name, "completions", model, body_of([1] * (tokens - 10)), False, None, **fields), tenant)

    async def serve(self, call: Call, tenant: str = "") -> None:
        name = call.request_id
        async with self.flow.ticket(call, tenant) as ticket:
            self.log.append(name)
            self.running[name] = asyncio.Event()
            await self.legs(call, ticket, self.running[name])

    async def legs(self, call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        await end.wait()

    @property
    def running(self) -> dict[str, asyncio.Event]:
        return self.__dict__.setdefault("_running", {})

    async def end(self, name: str) -> None:
        self.running.pop(name).set()
        await settle()

    def held(self) -> int:
        workers = [(pool, worker) for pool in self.pools for worker in pool.workers]
        load = sum(pool.load(worker) + self.kv(worker) for pool, worker in workers)
        return load + sum(self.flow.waiting(pool)[0] for pool in self.pools)

    def kv(self, worker: Worker) -> int:
        return self.flow.kv(worker)[0]

    def refused(self, reason: str, tenant: str = "", pool: str = "decode/sql") -> float:
        labels = {"pool": pool, "reason": reason, "tenant": tenant}
        return self.registry.get_sample_value("prefillshare_queue_refusals_total", labels) or 0.0


def body_of(prompt: str | list[int], output: int = 10) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": output}


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def refusal(task: "asyncio.Task[None]") -> RouterError:
    with pytest.raises(RouterError) as caught:
        await asyncio.wait_for(task, 5)
    return caught.value


async def test_a_call_waits_until_there_is_room_on_its_decode_worker() -> None:
    bench = Bench()
    first, second = bench.call("first"), bench.call("second")
    await settle()
    assert bench.log == ["first"]
    assert bench.flow.waiting(bench.sql) == (1, TOKENS)
    await bench.end("first")
    assert bench.log == ["first", "second"]
    await bench.end("second")
    await asyncio.gather(first, second)
    assert bench.held() == 0


async def test_a_call_waits_until_there_is_room_on_a_prefill_worker() -> None:
    bench = Bench(decode=10**6, prefill=100)
    bench.call("first")
    bench.call("second")
    await settle()
    assert bench.log == ["first"]
    await bench.end("first")
    assert bench.log == ["first", "second"]


async def test_what_the_prefill_worker_knows_does_not_count() -> None:
    bench = Bench(decode=10**6, prefill=4000)
    bench.placement.prefill("sql", None, chain_of_request(body_of([1] * 3000)))
    bench.call("first", tokens=3010)
    bench.call("second", tokens=3010)
    await settle()
    assert bench.log == ["first", "second"]


async def test_kv_that_is_not_pulled_takes_room_on_the_prefill_worker() -> None:
    bench = Bench(decode=10**6)
    bench.capacities.kv["p"] = 100
    seen: list[Ticket] = []

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        place_prefill(ticket, lambda room: bench.placement.prefill("sql", None, ticket.prompt, has_room=room))
        ticket.prefilled()
        seen.append(ticket)
        await end.wait()

    bench.legs = legs  # type: ignore[method-assign]
    bench.call("first")
    bench.call("second")
    await settle()
    assert bench.log == ["first"]
    seen[0].pulled()
    await settle()
    assert bench.log == ["first", "second"]
    seen[0].pulled()  # may be told again
    assert bench.kv(bench.prefill.workers[0]) == 90


@pytest.mark.parametrize(("pull_timeout_s", "entered"), [(0.01, ["first", "second"]), (8, ["first"])])
async def test_kv_counts_as_pulled_when_a_pull_would_have_been_refused(
    pull_timeout_s: float, entered: list[str]
) -> None:
    bench = Bench(decode=10**6, pull_timeout_s=pull_timeout_s)
    bench.capacities.kv["p"] = 100

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        ticket.prefilled()
        place_decode(
            ticket, lambda room: bench.placement.decode("sql", None, bench.placement.chain_of([1] * 90), has_room=room)
        )
        ticket.sent()
        await end.wait()

    bench.legs = legs  # type: ignore[method-assign]
    bench.call("first")
    bench.call("second")
    await asyncio.sleep(0.1)
    assert bench.log == entered


EXAMPLES = "the same for all " * 160  # 680 tokens


def asking(name: str, salt: str | None = None, prompt: str = EXAMPLES) -> Call:
    return Call(name, "completions", "sql", body_of(f"{prompt} {name}"), False, None, salt=salt)


async def letting_in(bench: Bench, *calls: Call) -> list["asyncio.Task[None]"]:
    tasks = []
    for call in calls:
        tasks.append(asyncio.create_task(bench.serve(call)))
        await settle()
    return tasks


@pytest.mark.parametrize(
    ("salts", "entered"),
    [((None, None), ["a", "b"]), (("one", "one"), ["a", "b"]), (("one", "other"), ["a"]), ((None, "other"), ["a"])],
)
async def test_what_prompts_share_takes_room_once_and_tenants_share_nothing(
    salts: tuple[str | None, str | None], entered: list[str]
) -> None:
    bench = Bench(decode=1000)
    await letting_in(bench, *map(asking, "ab", salts))
    assert bench.log == entered
    await bench.end("a")
    assert bench.log == ["a", "b"]
    await bench.end("b")
    assert bench.held() == 0


async def test_what_prompts_share_takes_room_until_the_last_of_them_has_gone() -> None:
    bench = Bench(decode=1000)
    await letting_in(bench, asking("a"), asking("b"), asking("c", prompt="another for each " * 160))
    assert bench.log == ["a", "b"]
    await bench.end("a")
    assert bench.log == ["a", "b"]
    await bench.end("b")
    assert bench.log == ["a", "b", "c"]


async def test_parked_prompts_take_room_once_where_they_are_the_same() -> None:
    bench = Bench(decode=10**6)
    bench.capacities.kv["p"] = 1000
    await letting_in(bench, asking("a"), asking("b"), asking("c", salt="other"))
    assert bench.log == ["a", "b"]


async def test_load_and_the_queue_go_by_whole_prompts() -> None:
    bench = Bench(decode=1000)
    await letting_in(bench, asking("a"), asking("b"), asking("c", salt="other"))
    worker = bench.sql.workers[0]
    whole = 680 + 10
    assert bench.sql.load(worker) == pytest.approx(2 * whole, abs=4)
    assert bench.flow.waiting(bench.sql)[1] == pytest.approx(whole, abs=2)
    assert bench.kv(worker) == pytest.approx(whole + 50 + 10, abs=50)  # one's last chunk is no other's


async def test_the_number_of_calls_is_limited_whatever_they_share() -> None:
    bench = Bench(decode=10**6)
    bench.sql.set_limit(bench.sql.workers[0], None, calls=1)
    await letting_in(bench, asking("a"), asking("b"))
    assert bench.log == ["a"]


async def test_a_call_that_is_tried_again_holds_room_on_no_worker_but_its_last() -> None:
    bench = Bench(decode=1000, sql_workers=2)
    seen: list[tuple[int, ...]] = []

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        failed: list[Worker] = []
        for _ in range(2):
            placed = place_decode(
                ticket,
                lambda room: bench.placement.decode(
                    "sql", None, bench.placement.chain_of([1] * 700), without=failed, has_room=room
                ),
            )
            assert placed
            with bench.sql.lease(placed.worker, placed.tokens):
                seen.append(tuple(bench.kv(worker) for worker in bench.sql.workers))
            ticket.decoded()
            failed.append(placed.worker)
            seen.append(tuple(bench.kv(worker) for worker in bench.sql.workers))

    bench.legs = legs  # type: ignore[method-assign]
    await asyncio.gather(*await letting_in(bench, asking("a")))
    first, between, second, after = seen
    assert sorted(first) == sorted(second) == [0, 710]
    assert first != second
    assert between == after == (0, 0)


def beyond(name: str) -> Call:
    """One whose prompt no worker takes, though not for sure: a template may leave its system message out."""
    messages = [{"role": "system", "content": f"{name} " + "all of it " * 2000}, {"role": "user", "content": "hello"}]
    return Call(name, "chat/completions", "sql", {"messages": messages}, False, None)


async def test_a_prompt_longer_than_any_context_takes_no_more_room_than_a_context() -> None:
    bench = Bench(decode=1000)
    bench.capacities.kv["p"] = 1000
    bench.capacities.capacity = Capacity(kv_tokens=1100, context=400)
    for worker in (bench.prefill.workers[0], bench.sql.workers[0]):
        bench.placement.holds(worker, 1000)
    short = chain_of_request(asking("short", prompt="short " * 200).body)
    bench.placement.prefill("sql", None, short)

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        place_prefill(ticket, lambda room: bench.placement.prefill("sql", None, ticket.prompt, has_room=room))
        await end.wait()

    bench.call("first")
    bench.legs = legs  # type: ignore[method-assign]
    asyncio.create_task(bench.serve(beyond("beyond"), "a"))  # noqa: RUF006
    bench.call("other", tenant="b")
    await settle()
    assert bench.log == ["first", "beyond", "other"]
    assert bench.sql.load(bench.sql.workers[0]) == 2 * TOKENS + 400
    assert bench.placement.knows_most(bench.prefill, None, short)
    for name in list(bench.log):
        await bench.end(name)
    assert bench.held() == 0


async def test_a_call_of_a_request_that_has_begun_is_not_refused_for_want_of_room() -> None:
    bench = Bench(queue_share=2, max_wait_s=0.02)
    calls = [bench.call("first"), *(bench.call(name, goes_on=True) for name in ("second", "third", "fourth"))]
    await settle()
    crowd = [bench.call(name, tenant="other") for name in ("one", "two", "three")]
    assert (await refusal(crowd[2])).message.startswith("The workers for this model are busy, and 2 calls are waiting")
    assert bench.flow.waiting(bench.sql) == (5, 5 * TOKENS)  # who comes later is not kept out by those who go on
    assert [(await refusal(call)).status for call in crowd[:2]] == [429, 429]  # there is no room for long
    assert bench.flow.waiting(bench.sql) == (3, 3 * TOKENS)
    for name in ("first", "second", "third", "fourth"):
        assert bench.log[-1] == name
        await bench.end(name)
    await asyncio.gather(*calls)
    assert bench.held() == 0


async def test_a_prompt_that_cannot_be_made_is_its_own_calls_error() -> None:
    bench = Bench()
    bench.routes["sql"] = replace(bench.routes["sql"], instructions="behind_context")
    messages = [{"role": "system", "content": [{"type": "image_url"}]}, {"role": "user", "content": "hello"}]
    wrong = Call("wrong", "chat/completions", "sql", {"messages": messages}, False, None)
    bench.call("first")
    bench.call("second")
    await settle()
    error = await refusal(asyncio.create_task(bench.serve(wrong)))
    assert (error.status, error.param) == (400, "messages")
    assert bench.flow.waiting(bench.sql)[0] == 1
    await bench.end("first")
    assert bench.log == ["first", "second"]


async def test_a_full_pool_stops_no_other_models_calls() -> None:
    bench = Bench()
    bench.call("first")
    bench.call("second")
    bench.call("other", model="json")
    await settle()
    assert bench.log == ["first", "other"]


async def test_a_small_call_does_not_overtake_a_large_one_of_its_key() -> None:
    bench = Bench(decode=150)
    bench.call("first")
    bench.call("large", tokens=140)
    bench.call("small", tokens=20)
    await settle()
    assert bench.log == ["first"]


async def test_a_large_call_on_the_prefill_pool_is_not_starved_by_small_ones_of_other_pools() -> None:
    bench = Bench(decode=10**6, prefill=200)
    bench.call("first", tokens=110)
    await settle()
    bench.call("large", tokens=190)
    await settle()
    bench.call("small", model="json", tokens=20)
    await settle()
    assert bench.log == ["first"]
    await bench.end("first")
    assert bench.log == ["first", "large", "small"]


async def test_a_key_that_floods_the_queue_starves_nobody() -> None:
    bench = Bench()
    for number in range(20):
        bench.call(f"flood {number}", tenant="flood")
    await settle()
    bench.call("quiet", tenant="quiet")
    await settle()
    await bench.end("flood 0")
    await bench.end(bench.log[-1])
    assert "quiet" in bench.log[:3]


@pytest.mark.parametrize("silent", ["sql-0", "p"])
async def test_nobody_is_refused_by_the_room_of_workers_that_have_not_said_what_they_hold(silent: str) -> None:
    bench = Bench(queue_share=1.0)
    bench.capacities.silent.add(silent)
    calls = [bench.call(str(number)) for number in range(9)]
    await settle()
    assert not any(call.done() for call in calls)
    bench.capacities.silent.clear()
    assert (await refusal(bench.call("one more"))).code == "overloaded"


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    bench = Bench(queue_share=1.0)
    bench.call("first")
    bench.call("second")
    await settle()
    error = await refusal(bench.call("third"))
    assert (error.status, error.code, error.headers["retry-after"]) == (429, "overloaded", "1")
    assert bench.refused("queue_full") == 1
    assert bench.flow.waiting(bench.sql) == (1, TOKENS)


async def test_retry_after_is_the_time_that_the_queue_takes() -> None:
    bench = Bench(queue_share=2.0)
    first = bench.call("first")
    await settle()
    bench.now = 7.0
    await bench.end("first")
    await first
    for name in ("second", "third", "fourth"):
        bench.call(name)
    await settle()
    error = await refusal(bench.call("fifth"))
    assert error.headers["retry-after"] == "14"  # two calls that wait for one at a time, seven seconds each


async def test_calls_of_an_idle_model_wait_for_the_prefill_worker_as_those_of_a_busy_one_do() -> None:
    bench = Bench(decode=10**6, prefill=100, queue_share=2.0)
    bench.call("first")
    await settle()
    bench.call("second", "json")
    bench.call("third", "json")  # nothing of json is in flight, so its share of that is nothing
    await settle()
    assert bench.flow.waiting(bench.json) == (2, 2 * TOKENS)
    error = await refusal(bench.call("fourth", "json"))
    assert (error.status, error.code) == (429, "overloaded")
    assert bench.refused("queue_full", pool="decode/json") == 1


async def test_what_other_models_have_waiting_for_the_prefill_worker_counts() -> None:
    bench = Bench(decode=10**6, prefill=100, queue_share=2.0)
    for name in ("first", "second"):
        bench.call(name)
    bench.call("third", "json")
    await settle()
    assert (await refusal(bench.call("fourth", "json"))).status == 429


async def test_a_full_decode_pool_bounds_its_queue_by_its_own_calls() -> None:
    bench = Bench(queue_share=1.0)
    bench.call("running", "json")
    for name in ("first", "second"):
        bench.call(name)
    await settle()
    assert (await refusal(bench.call("third"))).status == 429  # json's calls leave no room for it


async def test_the_expected_wait_for_a_prefill_worker_counts_other_models() -> None:
    bench = Bench(decode=10**6, prefill=100, max_wait_s=10.0)
    for model in ("sql", "json"):
        task = bench.call(f"known {model}", model)
        await settle()
        bench.now += 7.0
        await bench.end(f"known {model}")
        await task
    bench.call("running")
    await settle()
    bench.call("waiting")
    await settle()  # seven seconds
    error = await refusal(bench.call("late", "json"))  # seven more
    assert "within 10 s" in error.message
    assert bench.refused("deadline", pool="decode/json") == 1


async def test_in_a_full_queue_a_new_key_displaces_who_has_most() -> None:
    bench = Bench(queue_share=2.0)
    floods = [bench.call(f"flood {number}", tenant="flood") for number in range(3)]
    await settle()
    bench.call("quiet", tenant="quiet")
    await settle()
    assert bench.flow.waiting(bench.sql)[0] == 3  # the one only call of a key waits beside the others
    bench.call("quiet, too", tenant="another")
    assert (await refusal(floods[2])).status == 429
    assert bench.refused("queue_full", "flood") == 1
    assert bench.flow.waiting(bench.sql)[0] == 3


@pytest.mark.parametrize("tokens", [100, 700, 800, 2000])
async def test_no_flood_of_small_calls_starves_a_keys_larger_call(tokens: int) -> None:
    """In flight are 1,600 tokens, so 800 may wait. Before each call that ends, three more of the flood arrive."""
    bench = Bench(decode=10**6, queue_share=0.5)
    bench.sql.set_limit(bench.sql.workers[0], None, calls=16)
    floods: list[asyncio.Task[None]] = []

    async def flood(calls: int) -> None:
        for _ in range(calls):
            floods.append(bench.call(f"flood {len(floods)}", tenant="flood"))
            await settle()

    await flood(30)
    for turn in range(10):
        quiet = bench.call(f"quiet {turn}", tenant="quiet", tokens=tokens)
        for _ in range(40):
            await flood(3)
            await bench.end(next(iter(bench.running)))
            if quiet.done():
                break
        assert quiet.done()
        assert quiet.exception() is None
    assert bench.refused("queue_full", "quiet") == 0
    assert sum(name.startswith("flood") for name in bench.log) > 100
    for task in floods:
        task.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    assert bench.held() == 0


@pytest.mark.parametrize("limit", [{"tenant_calls": 1}, {"tenant_tokens": 150}])
async def test_a_tenant_may_have_a_limit_of_its_own(limit: dict[str, int]) -> None:
    bench = Bench(**limit)
    bench.call("running", tenant="a")
    bench.call("waiting", tenant="a")
    await settle()
    error = await refusal(bench.call("more", tenant="a"))
    assert error.status == 429
    assert "calls of your tenant" in str(error)
    assert bench.refused("tenant_limit", "a") == 1
    bench.call("other", tenant="b")
    await settle()
    assert bench.flow.waiting(bench.sql)[0] == 2


async def test_the_number_of_waiting_calls_is_limited() -> None:
    bench = Bench(queue_calls=2)
    for name in ("running", "a", "b"):
        bench.call(name)
    await settle()
    assert (await refusal(bench.call("c"))).status == 429


async def test_nobody_waits_longer_than_the_limit() -> None:
    bench = Bench(max_wait_s=0.05)
    bench.call("first")
    await settle()
    error = await refusal(bench.call("second"))
    assert (error.status, error.code) == (429, "overloaded")
    assert "0.05 s" in error.message
    assert bench.refused("deadline") == 1
    assert bench.flow.waiting(bench.sql) == (0, 0)


async def test_nobody_waits_longer_than_the_client_does() -> None:
    bench = Bench()
    bench.call("first")
    await settle()
    assert (await refusal(bench.call("second", patience_s=0.05))).status == 429


async def test_a_call_that_cannot_be_served_in_time_is_refused_before_it_waits() -> None:
    bench = Bench()
    first = bench.call("first")
    await settle()
    bench.now = 7.0
    await bench.end("first")
    await first
    bench.call("second")
    await settle()
    error = await refusal(bench.call("third", patience_s=13.0))
    assert error.status == 429
    assert bench.refused("deadline") == 1
    bench.call("fourth", patience_s=15.0)  # seven seconds of waiting, seven of its own
    await settle()
    assert bench.flow.waiting(bench.sql)[0] == 1


async def test_a_large_call_on_a_nearly_idle_system_waits_only_for_the_little_in_flight() -> None:
    bench = Bench(decode=50_000, prefill=4096)
    known = bench.call("known")
    await settle()
    bench.now = 3.0
    await bench.end("known")
    await known
    bench.call("small", tokens=600)
    await settle()
    large = bench.call("large", tokens=8000)
    await settle()
    assert not large.done()
    assert bench.flow.waiting(bench.sql) == (1, 8000)
    await bench.end("small")
    assert bench.log[-1] == "large"


async def test_a_call_is_told_to_come_back_after_what_is_ahead_of_it_and_in_flight() -> None:
    bench = Bench(max_wait_s=0.05)
    known = bench.call("known")
    await settle()
    bench.now = 0.04
    await bench.end("known")
    await known
    bench.flow._service.took(bench.sql, 30.0)  # in the mean 3.04 s
    bench.call("running")
    await settle()
    error = await refusal(bench.call("large", tokens=8000))
    assert "within 0.05 s" in error.message
    assert error.headers["retry-after"] == "4"


async def test_without_a_worker_nobody_waits() -> None:
    bench = Bench()
    bench.sql.mark_down(bench.sql.workers[0], "gone")
    error = await refusal(bench.call("first"))
    assert (error.status, error.code) == (503, "no_worker_available")
    assert "decode/sql" in error.message
    assert "gone" in error.message


async def test_who_waits_learns_that_no_worker_is_left() -> None:
    bench = Bench()
    bench.call("first")
    second = bench.call("second")
    await settle()
    bench.prefill.mark_down(bench.prefill.workers[0], "gone")
    bench.flow.freed()
    assert (await refusal(second)).status == 503
    assert bench.refused("no_worker") == 1


async def test_the_waiting_calls_of_a_module_that_goes_end_at_once_and_others_go_on() -> None:
    bench = Bench()
    bench.routes["yaml"] = ModelRoute("base", bench.prefill, bench.sql)
    running, other = bench.call("running"), bench.call("other", "json")
    behind = bench.call("behind", "yaml")
    gone = [bench.call(f"gone {number}") for number in range(2)]
    await settle()
    assert bench.flow.waiting(bench.sql)[0] == 3
    del bench.routes["sql"]
    bench.flow.removed("sql")
    for task in gone:
        error = await refusal(task)
        assert (error.status, error.code) == (404, "model_not_found")
    assert bench.refused("removed") == 2
    assert bench.flow.waiting(bench.sql)[0] == 1  # another module of that pool
    for name, task in (("other", other), ("running", running), ("behind", behind)):
        await bench.end(name)
        await task
    assert bench.held() == 0


async def test_who_waits_for_a_module_that_is_gone_is_nobody_elses_error() -> None:
    bench = Bench()
    running, other = bench.call("running"), bench.call("other", "json")
    waiting = bench.call("waiting")
    await settle()
    del bench.routes["sql"]
    bench.flow.freed()
    await bench.end("other")
    await other
    new = bench.call("new", "json")
    await settle()
    await bench.end("new")
    await new
    await bench.end("running")
    await bench.end("waiting")
    await asyncio.gather(running, waiting)
    assert bench.held() == 0


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_failure_while_a_call_arrives_leaves_nothing_of_it(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    freed = bench.flow.freed

    def fails() -> None:
        monkeypatch.setattr(bench.flow, "freed", freed)
        if when == "after":  # it has its ticket by then
            freed()
        raise KeyError("freed")

    monkeypatch.setattr(bench.flow, "freed", fails)
    with pytest.raises(KeyError):
        await bench.call("first")
    assert bench.held() == 0
    second = bench.call("second")
    await settle()
    await bench.end("second")
    await second
    assert bench.held() == 0


async def test_a_completion_is_held_to_what_its_worker_will_make_of_it() -> None:
    bench = Bench(decode=5000)
    body = {"prompt": [1] * 90, "max_tokens": 4000, "max_completion_tokens": 1}
    calls = await letting_in(bench, *(Call(name, "completions", "sql", body, False, None) for name in "ab"))
    assert bench.log == ["a"]
    assert bench.kv(bench.sql.workers[0]) == 4090
    for task in calls:
        task.cancel()


async def test_a_prompt_that_no_worker_can_hold_is_refused_at_once() -> None:
    bench = Bench()
    bench.capacities.capacity = Capacity(kv_tokens=1000, context=80)
    error = await refusal(bench.call("first"))
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert bench.refused("too_long") == 1
    assert bench.held() == 0


async def test_an_answer_is_counted_no_longer_than_a_worker_makes_it() -> None:
    bench = Bench(decode=200)
    bench.capacities.capacity = Capacity(kv_tokens=1000, context=95)
    bench.call("first")
    bench.call("second")
    await settle()
    assert bench.sql.load(bench.sql.workers[0]) == 2 * 95


async def test_who_leaves_the_queue_gives_way_at_once() -> None:
    bench = Bench(decode=150)
    bench.call("first")
    large = bench.call("large", tokens=140)
    bench.call("small", tokens=50)
    await settle()
    large.cancel()
    await settle()
    assert bench.log == ["first", "small"]
    assert large.cancelled()


async def test_who_is_let_in_and_leaves_at_the_same_moment_keeps_nothing() -> None:
    bench = Bench()
    async with bench.flow.ticket(Call("first", "completions", "sql", body_of([1] * 90), False, None), ""):
        second, third = bench.call("second"), bench.call("third")
        await settle()
    second.cancel()  # it has its ticket and has not run since
    await settle()
    assert second.cancelled()
    assert bench.log == ["third"]
    await bench.end("third")
    await third
    assert bench.held() == 0


async def test_the_legs_take_the_place_of_the_reservations() -> None:
    bench = Bench(decode=1000)
    loads: list[tuple[int, int]] = []

    def now() -> tuple[int, int]:
        return bench.prefill.load(bench.prefill.workers[0]), bench.sql.load(bench.sql.workers[0])

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        loads.append(now())
        placed = place_prefill(ticket, lambda room: bench.placement.prefill("sql", None, ticket.prompt, has_room=room))
        assert placed
        with bench.prefill.lease(placed.worker, placed.tokens):
            loads.append(now())
        ticket.prefilled()
        loads.append(now())
        placed = place_decode(
            ticket, lambda room: bench.placement.decode("sql", None, bench.placement.chain_of([1] * 120), has_room=room)
        )
        assert placed
        with bench.sql.lease(placed.worker, placed.tokens):
            ticket.sent()
            loads.append(now())

    bench.legs = legs  # type: ignore[method-assign]
    await bench.call("first")
    assert loads == [(90, 100), (90, 100), (0, 100), (0, 130)]
    assert bench.held() == 0


async def test_a_leg_goes_where_there_is_room_and_never_where_others_have_reserved_it() -> None:
    bench = Bench(decode=TOKENS, sql_workers=2)
    places: list[str] = []

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        await end.wait()
        session = ("user", "u")  # whose home would be the same worker for all
        placed = place_decode(
            ticket,
            lambda room: bench.placement.decode("sql", session, bench.placement.chain_of([1] * 90), has_room=room),
        )
        assert placed
        places.append(placed.worker.name)
        with bench.sql.lease(placed.worker, placed.tokens):
            await asyncio.sleep(0.01)

    bench.legs = legs  # type: ignore[method-assign]
    calls = [bench.call("a"), bench.call("b")]
    await settle()
    await bench.end("a")
    await bench.end("b")
    await asyncio.gather(*calls)
    assert sorted(places) == ["sql-0", "sql-1"]


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "end", "fail", "leave", "prefill down", "sql down", "all up", "wait"]),
        st.integers(0, 7),
        st.integers(11, 250),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_room_is_lost_whatever_happens(steps: list[Step]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[Step]) -> None:
    bench = Bench(decode=300, prefill=250, sql_workers=2, kv_lease_s=0, queue_share=2.0, queue_calls=6)
    bench.capacities.kv["p"] = 400
    outcomes: dict[str, str] = {}

    async def legs(call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        """Both legs, with an end to be waited for in each, on which the outcome may say that it failed."""
        route = bench.routes[call.model]
        placed = place_prefill(
            ticket, lambda room: bench.placement.prefill(call.model, None, ticket.prompt, has_room=room)
        )
        if placed is None:
            raise RouterError(503, "nobody")
        with route.prefill.lease(placed.worker, placed.tokens):
            await asyncio.sleep(0)
        ticket.prefilled()
        ids = call.body["prompt"]
        placed = place_decode(
            ticket, lambda room: bench.placement.decode(call.model, None, bench.placement.chain_of(ids), has_room=room)
        )
        if placed is None:
            raise RouterError(503, "nobody")
        with route.decode.lease(placed.worker, placed.tokens):
            await asyncio.sleep(0)
            ticket.pulled()
            await end.wait()
            if outcomes.get(call.request_id) == "fail":
                raise RouterError(502, "failed")
        ticket.decoded()

    bench.legs = legs  # type: ignore[method-assign]
    tasks: dict[str, asyncio.Task[None]] = {}
    for number, (step, which, tokens) in enumerate(steps):
        alive = [name for name, task in tasks.items() if not task.done()]
        ending = [name for name in alive if name in bench.running]
        if step == "arrive":
            name = str(number)
            tasks[name] = bench.call(name, ("sql", "json")[which % 2], f"tenant {which % 3}", tokens)
        elif step == "leave" and alive:
            tasks[alive[which % len(alive)]].cancel()
        elif step in ("end", "fail") and ending:
            outcomes[ending[which % len(ending)]] = step
            bench.running.pop(ending[which % len(ending)]).set()
        elif step.endswith("down"):
            pool = bench.prefill if step.startswith("prefill") else bench.sql
            pool.mark_down(pool.workers[which % len(pool.workers)], "gone")
        elif step == "all up":
            for pool in (bench.prefill, bench.sql):
                for worker in pool.workers:
                    pool.mark_up(worker)
        for _ in range(which % 4):
            await asyncio.sleep(0)
        bench.flow.freed()
    while any(not task.done() for task in tasks.values()):
        for name in list(bench.running):
            bench.running.pop(name).set()
        await settle()
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    allowed = (RouterError, asyncio.CancelledError)
    assert all(result is None or isinstance(result, allowed) for result in results)
    assert bench.held() == 0
    assert not list(bench.flow._queues)


def test_gauges_show_the_queue_and_the_limits() -> None:
    async def run(check: Callable[[Bench], None]) -> None:
        async with AsyncExitStack():
            bench = Bench()
            tasks = [bench.call("first"), bench.call("second", tenant="t")]
            await settle()
            check(bench)
            for task in tasks:
                task.cancel()

    def check(bench: Bench) -> None:
        read = bench.registry.get_sample_value
        worker = {"worker": "sql-0", "role": "decode", "pool": "decode/sql"}
        assert read("prefillshare_queue_calls", {"pool": "decode/sql"}) == 1
        assert read("prefillshare_queue_tokens", {"pool": "decode/sql"}) == TOKENS
        assert read("prefillshare_queue_tokens", {"pool": "prefill"}) is None
        assert read("prefillshare_worker_in_flight_tokens", worker) == TOKENS
        assert read("prefillshare_worker_limit_tokens", worker) is None
        assert read("prefillshare_worker_kv_tokens", worker) == TOKENS
        assert read("prefillshare_worker_kv_limit_tokens", worker) == TOKENS
        parked = {"worker": "p", "role": "prefill", "pool": "prefill"}
        assert read("prefillshare_worker_limit_tokens", parked) == 10**6
        assert read("prefillshare_worker_kv_tokens", parked) == TOKENS - 10
        assert read("prefillshare_worker_kv_limit_tokens", parked) is None
        assert read("prefillshare_queue_wait_seconds_count", {"pool": "decode/sql"}) == 1

    asyncio.run(run(check))


class Contexts(Bench):
    """Prompts of 1,001 tokens on one prefill worker that has to compute two of them at most."""

    def __init__(self, **config: Any) -> None:
        super().__init__(decode=10**6, prefill=2030, **config)

    def session(self, name: str, model: str = "sql", tenant: str = "") -> "asyncio.Task[None]":
        """A call of the session that `name` begins with. Calls of one session have the same prompt."""
        body = {"model": model, "prompt": name[0] * 4000, "max_tokens": 10}
        call = Call(name, "completions", model, body, False, ("x-session-id", name[0]))
        return asyncio.create_task(self.serve(call, tenant), name=name)

    async def legs(self, call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        placed = place_prefill(ticket, lambda room: self.placement.prefill(call.model, call.session, ticket.prompt))
        assert placed is not None
        with self.prefill.lease(placed.worker, placed.tokens):
            await end.wait()

    def overtakes(self, pool: str = "decode/sql") -> float:
        return self.registry.get_sample_value("prefillshare_queue_overtakes_total", {"pool": pool}) or 0.0


async def test_calls_whose_prompts_are_cached_go_before_older_ones() -> None:
    bench = Contexts()
    for name in ("a1", "b1", "c1", "d1"):
        bench.session(name)
    await settle()
    assert bench.log == ["a1", "b1"]  # there is room for no more
    bench.session("a2")
    await settle()
    assert bench.log == ["a1", "b1"]
    await bench.end("b1")
    assert bench.log[2:] == ["a2"]  # c1 came earlier, but what it has to compute fits no more
    assert bench.overtakes() == 1
    await bench.end("a1")
    await bench.end("a2")
    assert bench.log[3:] == ["c1", "d1"]
    assert bench.overtakes() == 1


async def test_calls_of_other_models_on_the_same_prefill_workers_let_them_go_first_too() -> None:
    bench = Contexts()
    for name in ("a1", "b1"):
        bench.session(name)
    await settle()
    bench.session("c1", model="json")  # this pool's turn comes before that of a2
    bench.session("a2")
    await settle()
    await bench.end("a1")
    assert bench.log == ["a1", "b1", "a2"]


async def test_no_new_session_gets_the_room_that_a_cached_one_waits_for() -> None:
    bench = Contexts()
    bench.placement.holds(bench.prefill.workers[0], 1_000)
    for name in ("a1", "b1", "c1"):
        bench.session(name)
    await settle()
    bench.session("a2")  # evicted by b1
    await settle()
    await bench.end("b1")
    assert bench.log == ["a1", "b1", "c1"]  # in order again: neither is cached


async def test_what_waiting_calls_have_cached_is_not_asked_while_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(decode=10**6, prefill=TOKENS - 10)
    asked: list[str] = []
    monkeypatch.setattr(bench.placement, "knows_most", lambda pool, session, chain: asked.append(pool.name))
    for number in range(9):
        bench.call(str(number))
    await settle()
    assert bench.log == ["0"]
    assert len(asked) == 1
    await bench.end("0")
    assert bench.log == ["0", "1"]
    assert len(asked) == 1 + 8


@pytest.mark.parametrize("lost", ["prefill", "decode"])
async def test_who_waits_for_a_full_prefill_worker_learns_that_no_worker_is_left(lost: str) -> None:
    bench = Bench(decode=10**6, prefill=TOKENS - 10)
    bench.call("first")
    waiting = bench.call("waiting")
    await settle()
    pool = bench.prefill if lost == "prefill" else bench.sql
    pool.mark_down(pool.workers[0], "gone")
    bench.flow.freed()
    assert (await refusal(waiting)).status == 503
    await bench.end("first")


async def test_who_has_waited_long_for_cached_ones_waits_no_longer() -> None:
    bench = Contexts(cached_first_s=5.0)
    for name in ("a1", "b1", "c1", "a2"):
        bench.session(name)
    await settle()
    bench.now = 5.0
    await bench.end("b1")
    assert bench.log == ["a1", "b1", "c1"]


async def test_calls_can_be_let_in_as_they_come() -> None:
    bench = Contexts(cached_first_s=0.0)
    for name in ("a1", "b1", "c1", "a2"):
        bench.session(name)
    await settle()
    await bench.end("b1")
    assert bench.log == ["a1", "b1", "c1"]
    assert bench.overtakes() == 0


async def test_cached_prompts_do_not_take_the_turn_of_another_key() -> None:
    bench = Contexts()
    for name in ("a1", "b1"):
        bench.session(name, tenant="acme")
    await settle()
    bench.session("c1", tenant="other")
    bench.session("a2", tenant="acme")
    await settle()
    await bench.end("b1")
    assert bench.log == ["a1", "b1", "c1"]


class Texts(Bench):
    """Whose prompts are texts of 2,900 bytes, each its own, that the worker makes into `tokens`."""

    tokens = 480

    async def legs(self, call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        place_prefill(ticket, lambda has_room: Placed(self.prefill.workers[0], "load", self.tokens))
        ticket.prefilled()
        place_decode(ticket, lambda has_room: Placed(self.routes[call.model].decode.workers[0], "load", self.tokens))
        ticket.sent()
        await end.wait()

    async def run(self, name: str, model: str, tenant: str, tokens: int, **fields: Any) -> None:
        text = f"{name} ".ljust(2900 - len('""'), "x")
        await self.serve(Call(name, "completions", model, body_of(text), False, None, **fields), tenant)

    async def learn(self, times: int, tenant: str = "") -> None:
        for number in range(times):
            task = self.call(f"{tenant}-{number}", tenant=tenant)
            await settle()
            await self.end(f"{tenant}-{number}")
            await task


async def test_how_long_prompts_are_is_learned_from_those_before() -> None:
    bench = Texts(decode=1000)  # two of 480 tokens and 10 of an answer, but one of 2,900 / 4
    await bench.learn(7)
    first, second = bench.call("first"), bench.call("second")
    await settle()
    assert bench.log[7:] == ["first"]
    await bench.end("first")
    await bench.end("second")
    await asyncio.gather(first, second)
    bench.call("third", tenant="acme")
    fourth = bench.call("fourth", tenant="acme")
    await settle()
    assert bench.log[9:] == ["third"]  # what others sent says nothing of this tenant's texts
    fourth.cancel()
    await bench.end("third")
    bench.call("fifth")
    bench.call("sixth")
    await settle()
    assert bench.log[10:] == ["fifth", "sixth"]
    await bench.end("fifth")
    await bench.end("sixth")
    assert bench.held() == 0


async def test_dense_prompts_are_known_for_what_they_are_after_the_first() -> None:
    bench = Texts(decode=1600)
    bench.tokens = 1400  # not 725
    await bench.learn(1)
    bench.call("first")
    bench.call("second")
    await settle()
    assert bench.log[1:] == ["first"]
    taken = bench.registry.get_sample_value("prefillshare_prompt_bytes_per_token", {"pool": "prefill", "tenant": ""})
    assert taken == pytest.approx(2900 / 1400, rel=0.05)


async def test_what_a_prompt_beyond_the_context_teaches_is_its_own() -> None:
    """Its template has left most of it out; cut to the context, it would look dense."""
    bench = Texts(decode=10**6)
    bench.capacities.capacity = Capacity(context=500)
    bench.tokens = 400
    calls = [replace(beyond(f"call-{number}"), request_id=f"-{number}") for number in range(8)]
    await letting_in(bench, *calls)
    assert len(bench.log) == 8
    assert bench.flow._density.of(bench.prefill, "") == 8


async def test_token_ids_teach_nothing() -> None:
    bench = Bench(decode=10**6)
    bench.legs = Texts.legs.__get__(bench)  # type: ignore[method-assign]
    bench.tokens = 1  # type: ignore[attr-defined]
    for number in range(8):
        bench.call(f"ids-{number}", tokens=2000)
    await settle()
    assert len(bench.log) == 8
    assert bench.flow._density.of(bench.prefill, "") == 4
