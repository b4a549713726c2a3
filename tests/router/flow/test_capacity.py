import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.router.flow import capacity
from prefillshare.router.flow.capacity import Capacities, Capacity, context_in, keep_asking, kv_tokens_in
from prefillshare.router.flow.held import HeldKV
from prefillshare.router.placement.chunks import chain_of_request
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.relay import open_http
from prefillshare.router_config import FlowConfig, RouterConfig
from tests.router.fakes import Served, decode_worker, prefill_worker

PROMPT = chain_of_request({"prompt": [1] * 2010})
INFO = (
    "# TYPE vllm:cache_config_info gauge\n"
    'vllm:cache_config_info{block_size="128",engine="0",kv_cache_size_tokens="SIZE",num_gpu_blocks="364"} 1.0\n'
)


def info(size: object) -> str:
    return INFO.replace("SIZE", str(size))


@pytest.mark.parametrize(("size", "tokens"), [(46592, 46592), ("None", 364 * 128)])
def test_the_size_of_the_cache_is_read_from_the_metrics(size: object, tokens: int) -> None:
    assert kv_tokens_in(info(size)) == tokens


@pytest.mark.parametrize("text", ["", "vllm:cache_config_info{} 1.0", INFO.replace("364", "None")])
def test_where_it_says_nothing_nothing_is_known(text: str) -> None:
    assert kv_tokens_in(text.replace('kv_cache_size_tokens="SIZE",', "")) is None


@pytest.mark.parametrize("models", [None, {}, {"data": [{}]}, {"data": ["x"]}, {"data": [{"max_model_len": "x"}]}])
def test_a_context_that_nobody_names_is_not_known(models: Any) -> None:
    assert context_in(models) is None


def worker_app(asked: list[str], status: int = 200, size: int = 10_000) -> Starlette:
    async def metrics(request: Request) -> Response:
        asked.append(request.url.path)
        return PlainTextResponse(info(size), status)

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "sql", "max_model_len": 4096}]})

    return Starlette(routes=[Route("/metrics", metrics), Route("/v1/models", models)])


async def limits(
    serve: Callable[[ASGIApp], Served],
    settings: FlowConfig,
    asked: list[str],
    status: int = 200,
    told: Callable[[Worker, int], None] = lambda worker, kv_tokens: None,
) -> tuple[Pool, Pool, Capacities]:
    url = serve(worker_app(asked, status)).url
    pools = (Pool("prefill", [prefill_worker("p", url)]), Pool("sql", [decode_worker("d", url)]))
    for pool in pools:
        for worker in pool.workers:
            pool.mark_up(worker)
    async with open_http(RouterConfig()) as http:
        capacities = Capacities(http, pools, settings, 4, told)
        await capacities.ask()
        await capacities.ask()
    return (*pools, capacities)


async def test_a_worker_is_asked_once_and_limited_by_what_it_says(serve: Callable[[ASGIApp], Served]) -> None:
    asked: list[str] = []
    prefill, decode, capacities = await limits(serve, FlowConfig(kv_share=0.5, prefill_tokens=2000), asked)
    assert len(asked) == 2  # each worker once
    assert prefill.limit(prefill.workers[0]) == 2000
    assert capacities.kv_limit(prefill.workers[0]) == capacities.kv_limit(decode.workers[0]) == 5000
    assert decode.limit(decode.workers[0]) is None  # its calls are limited by their KV
    assert capacities.of(decode.workers[0]) == Capacity(10_000, 4096)
    assert capacities.of(decode.workers[0]).longest_call == 4096
    leases = [decode.reserve(decode.workers[0], 1) for _ in range(4)]
    assert not decode.has_room(decode.workers[0], 1)  # four calls at a time
    assert len(leases) == 4


async def test_whoever_wants_to_know_is_told_how_large_caches_are(serve: Callable[[ASGIApp], Served]) -> None:
    found: list[tuple[str, int]] = []
    await limits(serve, FlowConfig(), [], told=lambda worker, kv_tokens: found.append((worker.name, kv_tokens)))
    assert sorted(found) == [("d", 10_000), ("p", 10_000)]
    await limits(serve, FlowConfig(), [], 404, lambda worker, kv_tokens: found.append(("nothing is known", 0)))
    assert len(found) == 2


async def test_the_file_has_the_last_word(serve: Callable[[ASGIApp], Served]) -> None:
    prefill, decode, capacities = await limits(serve, FlowConfig(decode_tokens=123, decode_calls=1), [])
    assert capacities.kv_limit(decode.workers[0]) == 123
    assert capacities.kv_limit(prefill.workers[0]) == 9000
    decode.reserve(decode.workers[0], 1)
    assert not decode.has_room(decode.workers[0], 1)


async def test_a_worker_that_says_nothing_has_only_the_limits_that_need_no_cache(
    serve: Callable[[ASGIApp], Served],
) -> None:
    prefill, decode, capacities = await limits(serve, FlowConfig(), [], status=404)
    assert prefill.limit(prefill.workers[0]) == 4096
    assert capacities.kv_limit(prefill.workers[0]) is capacities.kv_limit(decode.workers[0]) is None


async def test_a_worker_that_was_down_is_asked_again(serve: Callable[[ASGIApp], Served]) -> None:
    asked: list[str] = []
    url = serve(worker_app(asked)).url
    pool = Pool("sql", [decode_worker("d", url)])
    async with open_http(RouterConfig()) as http:
        capacities = Capacities(http, [pool], FlowConfig(), None)
        await capacities.ask()
        assert asked == []  # down
        pool.mark_up(pool.workers[0])
        await capacities.ask()
        pool.mark_down(pool.workers[0], "gone")
        pool.mark_up(pool.workers[0])
        await capacities.ask()
    assert len(asked) == 2


async def test_a_worker_that_joins_under_the_name_of_one_that_left_is_asked(serve: Callable[[ASGIApp], Served]) -> None:
    old, new = (decode_worker("d", serve(worker_app([], size=size)).url) for size in (10_000, 20_000))
    pool = Pool("sql", [old])
    pool.mark_up(old)
    async with open_http(RouterConfig()) as http:
        capacities = Capacities(http, [pool], FlowConfig(), None)
        await capacities.ask()
        pool.remove(old)
        capacities.forget(old)
        pool.add(new)
        pool.mark_up(new)
        assert capacities.of(new) == Capacity()
        await capacities.ask()
        assert capacities.of(new).kv_tokens == 20_000


async def test_a_worker_that_joins_gets_one_call_at_a_time_until_it_has_been_asked(
    serve: Callable[[ASGIApp], Served],
) -> None:
    url = serve(worker_app([])).url
    async with open_http(RouterConfig()) as http:
        for worker in (prefill_worker("p", url), decode_worker("d", url)):
            for settings in (FlowConfig(), FlowConfig(decode_tokens=5000)):
                pool = Pool("pool", [worker])
                pool.mark_up(worker)
                capacities = Capacities(http, [pool], settings, 4)
                held = HeldKV(capacities.kv_limit)
                assert held.has_room(worker, PROMPT)
                held.hold(worker, PROMPT)
                assert not held.has_room(worker, PROMPT)
                await capacities.ask()
                assert held.has_room(worker, PROMPT)


async def test_a_worker_whose_answers_fail_is_asked_on_and_said_to(
    serve: Callable[[ASGIApp], Served], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    pool = Pool("sql", [decode_worker("d", serve(worker_app(asked, status=503)).url)])
    worker = pool.workers[0]
    async with open_http(RouterConfig()) as http:
        capacities = Capacities(http, [pool], FlowConfig(), None)

        async def ask_again() -> list[str]:
            caplog.clear()
            for _ in range(3):
                await capacities.ask()
            return caplog.messages

        pool.mark_up(worker)
        why = "worker=d does not say what it has room for (ClientResponseError); until then"
        assert await ask_again() == [f"{why} one call at a time"]
        assert (len(asked), capacities.kv_limit(worker)) == (3, 0)
        pool.mark_down(worker, "gone")
        pool.mark_up(worker)
        capacities._known["d"] = (0, Capacity(10_000, 4096))
        assert await ask_again() == [f"{why} the limits of its last start"]
        assert capacities.kv_limit(worker) == 9000


async def test_asking_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capacity, "_INTERVAL_S", 0.001)
    failed, again = asyncio.Event(), asyncio.Event()

    def then() -> None:
        if failed.is_set():
            again.set()
        failed.set()
        raise KeyError("a prompt")

    async with open_http(RouterConfig()) as http:
        asking = asyncio.create_task(keep_asking(Capacities(http, [], FlowConfig(), None), then))
        await asyncio.wait_for(again.wait(), 5)
        asking.cancel()
    assert "KeyError" in caplog.text
    assert "a prompt" not in caplog.text
