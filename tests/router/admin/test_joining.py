import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.announcement import PATH, Announcement
from prefillshare.router.admin.joining import Expected, ask, ask_those_up, judge
from prefillshare.router.errors import RouterError
from tests.router.fakes import BLOCK_SIZE, FakeWorker, Served, announcement, decode_worker, prefill_worker

WORKER = decode_worker("sql-9")
DECODE = Expected("decode", "sha256:base", BLOCK_SIZE, {"sql": "in_place"})


def said(role: str = "decode", *models: str, **fields: Any) -> Announcement:
    return Announcement.model_validate(announcement(role, *(models or ("sql",)), **fields))


def verdict(
    announced: Announcement, expected: Expected = DECODE, peers: Mapping[str, Announcement] | None = None
) -> str:
    """Why the worker is refused; empty when it is not."""
    try:
        judge(WORKER, announced, expected, peers or {})
    except RouterError as error:
        return f"{error.status} {error.code}: {error.message}"
    return ""


def test_a_worker_that_is_what_the_pool_needs_may_join() -> None:
    assert verdict(said(), peers={"prefill-0": said("prefill", "base"), "sql-0": said()}) == ""
    assert verdict(said("decode", "json", "sql", "xml")) == ""
    assert verdict(said("prefill", "base"), Expected("prefill", "sha256:base", BLOCK_SIZE, {"base": None})) == ""


@pytest.mark.parametrize(
    ("announced", "why"),
    [
        (said("prefill"), "it is a prefill worker, the pool has decode workers"),
        (said(base_identity="sha256:other"), "decodes modules of the base sha256:other"),
        (said(block_size=32), "its block size is 32, the others' 16"),
        (said("decode", "json"), "does not serve 'sql'; it serves json"),
        (said(models=[{"name": "sql", "instructions": "behind_context"}]), "says instructions: behind_context"),
    ],
)
def test_a_worker_that_is_something_else_may_not(announced: Announcement, why: str) -> None:
    assert why in verdict(announced)
    assert verdict(announced).startswith("409 worker_mismatch: worker sql-9: ")


def test_nobody_joins_a_base_that_nobody_knows() -> None:
    assert "identity" in verdict(said(base_identity=""), Expected("decode", "", BLOCK_SIZE, {"sql": None}))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"vllm": "0.33.0"}, "vLLM 0.33.0, prefill-0 has 0.32.0"),
        ({"kv": {"dtype": "torch.float32"}}, "dtype torch.float32, prefill-0 has dtype torch.bfloat16"),
        ({"max_model_len": 512}, "max_model_len 512, prefill-0 has 4096"),
        ({"handoff_key": "b2"}, "another PREFILLSHARE_HANDOFF_KEY than prefill-0"),
    ],
)
def test_workers_that_exchange_kv_must_agree(fields: dict[str, Any], why: str) -> None:
    found = verdict(said(**fields), peers={"prefill-0": said("prefill", "base")})
    assert why in found
    assert "b2" not in found


def test_two_versions_of_a_module_are_not_served_by_turns() -> None:
    def version(digest: str) -> Announcement:
        return said(models=[{"name": "sql", "digest": digest}, {"name": digest}])

    assert "'sql' has other weights than that of sql-0" in verdict(version("b"), peers={"sql-0": version("a")})
    assert verdict(version("a"), peers={"sql-0": version("a"), "prefill-0": said("prefill", "base")}) == ""


def test_workers_of_a_pool_find_tool_calls_in_the_same_way() -> None:
    def parsing(parser: str | None) -> Announcement:
        return said(models=[{"name": "sql", "tool_call_parser": parser}])

    assert "tool_call_parser None, sql-0 has hermes" in verdict(parsing(None), peers={"sql-0": parsing("hermes")})
    assert verdict(parsing("hermes"), peers={"sql-0": parsing("hermes")}) == ""


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"authorization": "Bearer worker-key"}) as session:
        yield session


Serve = Callable[[ASGIApp], Served]


def answering(response: Response) -> ASGIApp:
    async def answer(request: Any) -> Response:
        return response

    return Starlette(routes=[Route(PATH, answer)])


async def refusal(http: aiohttp.ClientSession, url: str) -> RouterError:
    with pytest.raises(RouterError) as raised:
        await ask(http, decode_worker("sql-9", url))
    return raised.value


async def test_what_a_worker_says_is_read(http: aiohttp.ClientSession, serve: Serve) -> None:
    fake = FakeWorker("sql", announces=announcement("decode", "sql", more="of a later version"))
    assert await ask(http, decode_worker("sql-9", serve(fake.app()).url)) == said()


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (Response(status_code=401), "VLLM_API_KEY"),
        (Response(status_code=404), "no worker of PrefillShare"),
        (RedirectResponse("http://127.0.0.1:1/"), "answers 307"),
        (Response("hello"), "something else"),
        (Response('{"role": "decode"}'), "something else"),
        (Response(b"x" * 1_000_000), "something else"),
    ],
)
async def test_who_does_not_say_what_it_is_may_not_join(
    http: aiohttp.ClientSession, serve: Serve, response: Response, why: str
) -> None:
    error = await refusal(http, serve(answering(response)).url)
    assert (error.status, error.code) == (409, "worker_mismatch")
    assert why in error.message


async def test_a_worker_that_is_not_there_yet_is_another_error(http: aiohttp.ClientSession) -> None:
    error = await refusal(http, "http://127.0.0.1:1")
    assert (error.status, error.code, error.param) == (502, "worker_unreachable", "url")


async def test_a_peer_that_does_not_answer_is_no_witness(http: aiohttp.ClientSession, serve: Serve) -> None:
    fake = FakeWorker("base", announces=announcement("prefill", "base"))
    peers = [prefill_worker("prefill-0", serve(fake.app()).url), prefill_worker("prefill-1")]
    assert list(await ask_those_up(http, peers)) == ["prefill-0"]


async def test_whom_this_process_cannot_ask_is_not_taken_for_absent(
    http: aiohttp.ClientSession, serve: Serve, no_files_left: Callable[[], AbstractContextManager[None]]
) -> None:
    fake = FakeWorker("base", announces=announcement("prefill", "base"))
    peer = prefill_worker("prefill-0", serve(fake.app()).url)
    for asked in (ask(http, peer), ask_those_up(http, [peer])):
        with no_files_left(), pytest.raises(RouterError) as raised:
            await asked
        assert (raised.value.status, raised.value.code) == (503, "out_of_files")


async def test_a_peer_that_takes_no_connection_in_time_is_no_witness(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefillshare.router.admin.joining.CONNECT_S", 0.2)
    with socket.socket() as server, ExitStack() as clients:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):  # more than wait to be accepted, and nobody accepts
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        peer = prefill_worker("prefill-0", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert await ask_those_up(http, [peer]) == {}


@pytest.mark.parametrize("why", ["slow", "broken off"])
async def test_a_peer_that_owes_the_answer_keeps_others_out(
    http: aiohttp.ClientSession, serve: Serve, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("prefillshare.router.admin.joining.ANSWER_S", 0.2)

    async def parts() -> AsyncIterator[bytes]:
        yield b"{"
        if why == "broken off":
            raise ConnectionError
        await asyncio.sleep(1)

    peer = decode_worker("sql-0", serve(answering(StreamingResponse(parts()))).url)
    with pytest.raises(RouterError, match="sql-0") as raised:
        await ask_those_up(http, [prefill_worker(), peer])
    assert (raised.value.status, raised.value.code, raised.value.param) == (502, "worker_unreachable", None)
