"""Work is timed beside other work: on a fake system whose two cores slow each other down."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from prefillshare.bench import contention
from prefillshare.bench.client import open_client
from prefillshare.bench.contention import Contention, crossed
from prefillshare.bench.costs import Measurement
from prefillshare.bench.systems import Machine
from prefillshare.errors import UserError
from prefillshare.simulate.cost import Slowdown
from tests.bench.fake_server import FakeServer, hosted_by
from tests.workloads.tokenisers import words

MACHINE = Machine(max_model_len=1024, max_num_seqs=4, decode_kv_tokens=8192)
TOKEN_S = 0.02
PROMPT_S = 0.3


class TwoCores(FakeServer):
    """Model-0 prefills on core 0 and decodes on core 1, model-1 the other way round. A prompt takes 1.5 times as long
    beside an answer, 1.2 times beside a prompt; an answer twice as long beside a prompt, and no longer beside another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.busy: list[tuple[str, int]] = []

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        model, tokens = int(body["model"][-1]), body["max_tokens"]
        is_prompt = tokens == 1 and len(body["messages"][-1]["content"].split()) > 500
        kind, core = ("prefill", model) if is_prompt else ("decode", 1 - model)
        beside = {other for other, its_core in self.busy if its_core != core}
        self.busy.append((kind, core))
        try:
            if is_prompt:
                await asyncio.sleep(PROMPT_S)
                milliseconds = 1000 * (1.5 if "decode" in beside else 1.2 if "prefill" in beside else 1.0)
            else:
                milliseconds = 1.0
            headers = {"content-type": "text/event-stream", "x-prefillshare-prefill-ms": str(milliseconds)}
            response = web.StreamResponse(headers=headers if self.routes else {})
            await response.prepare(request)
            for _ in range(tokens):
                content = {"choices": [{"delta": {"content": "w "}, "finish_reason": None}]}
                await response.write(b"data: " + json.dumps(content).encode() + b"\n\n")
                if not is_prompt:
                    await asyncio.sleep(TOKEN_S * (2 if "prefill" in beside else 1))
        finally:
            self.busy.remove((kind, core))
        usage = {"prompt_tokens": 100, "completion_tokens": tokens}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_ROUNDS": 2, "_SHORT": 8, "_UNDER_WAY_S": 0.1}.items():
        monkeypatch.setattr(contention, name, value)


async def measured(server: FakeServer) -> Slowdown:
    async with hosted_by(server, models=2, role="decode") as system, open_client("") as http:
        return await Contention(Measurement(http, system, words, MACHINE, lambda step: None)).measure()


async def test_each_kind_of_work_is_timed_beside_each() -> None:
    server = TwoCores()
    found = await measured(server)
    assert (found.prefill_beside_prefill, found.prefill_beside_decode) == (pytest.approx(1.2), pytest.approx(1.5))
    assert found.decode_beside_prefill == pytest.approx(2.0, abs=0.4)
    assert found.decode_beside_decode == pytest.approx(1.0, abs=0.2)
    assert not server.busy  # what was beside has been stopped


async def test_without_the_routers_times_nothing_is_measured() -> None:
    server = TwoCores()
    server.routes = False
    with pytest.raises(UserError, match="did not say how long a prompt took"):
        await measured(server)


async def test_a_call_that_fails_beside_the_timed_one_is_an_error() -> None:
    server = TwoCores()
    server.behaviour = "refuses"
    with pytest.raises(UserError, match="a call failed: HTTP 429"):
        await measured(server)


def test_both_kinds_of_workers_are_put_on_two_cores() -> None:
    found = crossed(Machine(prefill_cores=(4, 5), decode_cores=(6,)))
    assert found is not None
    assert (found.prefill_cores, found.decode_cores) == ((4, 5), (5, 4))
    assert crossed(Machine(prefill_cores=(1,), decode_cores=(1,))) is None
