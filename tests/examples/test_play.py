import asyncio
import io
import json
from collections.abc import AsyncIterator

import pytest
import uvicorn
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from examples.demo.play import Player
from tests.deployment.fakes import free_ports


class Stack:
    """Router, prefill worker and decode workers in one: answers "ok <n>" to the n-th call, and counts pulls."""

    def __init__(self) -> None:
        self.requests: list[dict] = []

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/metrics", self.metrics),
            ]
        )

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        number = len(self.requests)

        async def events() -> AsyncIterator[str]:
            for text in ("", "ok ", str(number)):
                choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
                chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
                yield f"data: {json.dumps(chunk)}\n\n"
                await asyncio.sleep(0.05)
            yield "data: [DONE]\n\n"

        figures = {"prompt": 100 * number, "computed": 30, "reused": 100 * number - 30, "reused-from-others": 20}
        headers = {f"x-prefillshare-{name}-tokens": str(value) for name, value in figures.items()}
        headers |= {"x-prefillshare-prefill-ms": "12.5", "x-prefillshare-decode-worker": f"decode-{body['model']}-0"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        assert request.headers["authorization"] == "Bearer of workers"
        assert body["model"] == "base"
        assert body["add_generation_prompt"] is True
        return JSONResponse({"tokens": [len(message["content"]) for message in body["messages"]]})

    async def metrics(self, request: Request) -> Response:
        pulls = len(self.requests)
        return PlainTextResponse(
            "# TYPE vllm:nixl_bytes_transferred histogram\n"
            f'vllm:nixl_bytes_transferred_sum{{engine="0"}} {1000 * pulls * pulls}\n'
            f'vllm:nixl_bytes_transferred_count{{engine="0"}} {pulls}\n'
            "# TYPE vllm:nixl_xfer_time_seconds histogram\n"
            f'vllm:nixl_xfer_time_seconds_sum{{engine="0"}} {0.002 * pulls}\n'
        )


@pytest.fixture
async def stack() -> AsyncIterator[tuple[Stack, str]]:
    fake, (port,) = Stack(), free_ports(1)
    server = uvicorn.Server(uvicorn.Config(fake.app, port=port, log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0.02)
    yield fake, f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


async def test_calls_are_measured_and_answers_join_the_context(stack: tuple[Stack, str]) -> None:
    fake, url = stack
    output = io.StringIO()
    player = Player(
        router=url,
        prefill=url,
        worker_key="of workers",
        base="base",
        decode={"decode-sql-0": url},
        console=Console(file=output, width=80),
    )
    context = [{"role": "system", "content": "rules"}]
    calls = await player.play(context, [("sql", "first?", "ok 1"), ("sql", "second [2]?", "no")])
    await player.close()

    assert [request["messages"] for request in fake.requests] == [
        [*context, {"role": "user", "content": "first?"}],
        [
            *context,
            {"role": "user", "content": "first?"},
            {"role": "assistant", "content": "ok 1"},
            {"role": "user", "content": "second [2]?"},
        ],
    ]
    assert [call.answer for call in calls] == ["ok 1", "ok 2"]
    assert [call.correct for call in calls] == [True, False]
    assert [(call.prompt_tokens, call.computed_tokens, call.reused_tokens) for call in calls] == [
        (100, 30, 70),
        (200, 30, 170),
    ]
    assert [call.reused_from_others_tokens for call in calls] == [20, 20]
    assert [call.prefill_ms for call in calls] == [12.5, 12.5]
    # Each call gets what the counters grew by since the call before it.
    assert [call.handoff_bytes for call in calls] == [1000, 3000]
    assert [call.handoff_ms for call in calls] == pytest.approx([2.0, 2.0])
    assert all(50 <= call.first_token_ms < 5000 for call in calls)  # the empty first chunk is no token
    assert calls[0].prompt_token_ids == (5, 6)
    assert "second [2]?" in output.getvalue()
    assert "ok 2" in output.getvalue()
