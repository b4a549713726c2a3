"""vLLM workers as far as the router can tell: the same shapes, no model.

Token ids are the bytes of the prompt. A prefill worker keeps a prefix cache of whole blocks. A decode worker answers
"<model> read <prompt>", so that an answer shows which model and which prompt it came from.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.announcement import PATH
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.placement.chunks import chain_of_request
from prefillshare.router.placement.placement import HasRoom, Placed
from prefillshare.router.pool import Worker
from prefillshare.router.worker_facts import WorkerFacts

BLOCK_SIZE = 16
FACTS = WorkerFacts(block_size=BLOCK_SIZE, key=None, max_num_seqs=None, kv_lease_s=30.0, pull_timeout_s=8.0)


class Served:
    """An ASGI app behind uvicorn on a loopback port, by default a free one, in a thread of its own."""

    def __init__(self, app: ASGIApp, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started)

    def begin_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_to_stop()
        self._thread.join(timeout=10)
        self._socket.close()


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def rendered(body: dict[str, Any]) -> str:
    """A chat template and a tokenizer, of sorts."""
    if "prompt" in body:
        return body["prompt"] if isinstance(body["prompt"], str) else bytes(body["prompt"]).decode()
    tools = json.dumps(body["tools"]) if body.get("tools") else ""
    return tools + "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])


@dataclass
class FakeWorker:
    """Serves the names in `model`, comma between them.

    `behaviour` is changed by tests (who is "silent" does not even answer /health, who "hangs" does); `bodies` and
    `headers` are what it was sent, `aborted` what it gave up.
    """

    model: str
    behaviour: str = "ok"
    extending: str = "ok"  # the behaviour towards extensions
    slow_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    extensions: list[dict[str, Any]] = field(default_factory=list)  # those of the bodies
    headers: list[dict[str, str]] = field(default_factory=list)
    aborted: int = 0
    params: dict[str, Any] = field(default_factory=dict)  # replaces parts of kv_transfer_params
    healthy: bool = True
    running: int = 1  # what /metrics says of its engine
    waiting: int = 0
    busy: bool = False  # whether that changes
    steps: int = 0
    pause: threading.Event | None = None  # prefills wait for it, and streams after their first token
    refusals: list[str] = field(default_factory=list)  # the reasons for which a decode worker refuses the next calls
    cache: set[bytes] = field(default_factory=set)
    announces: dict[str, Any] | None = None  # what it says of itself; None: as a worker that cannot say
    digests_s: float = 0.0  # how long it reads its modules when it is first asked

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route(PATH, self.announce),
            ]
        )

    async def health(self, request: Request) -> Response:
        if self.behaviour == "silent":
            await asyncio.sleep(30)
        return Response(status_code=200 if self.healthy else 503)

    async def metrics(self, request: Request) -> Response:
        if self.behaviour == "silent":
            await asyncio.sleep(30)
        self.steps += self.busy
        return Response(
            f"process_cpu_seconds_total {time.monotonic()}\n"
            f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
            f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}\n'
            f'vllm:iteration_tokens_total_count{{engine="0"}} {self.steps}\n'
        )

    async def announce(self, request: Request) -> Response:
        seconds, self.digests_s = self.digests_s, 0.0
        await asyncio.sleep(seconds)
        return JSONResponse(self.announces, 200 if self.announces else 404)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        extends = request.headers.get("x-request-id", "").endswith("-extension")
        if extends:
            assert "kv_transfer_params" not in body
            self.extensions.append(body)
        await asyncio.sleep(self.slow_s)
        for _ in range(4000):  # until the test lets it go
            if self.behaviour != "held":
                break
            await asyncio.sleep(0.005)
        behaviour = self.extending if extends else self.behaviour
        if behaviour.isdecimal():
            status = int(behaviour)
            error = {"message": "no such thing", "type": "BadRequestError", "param": "messages", "code": status}
            return JSONResponse({"error": error}, status)
        if behaviour in ("silent", "hangs"):
            await self._wait_for_disconnect(request)
        if behaviour == "crash":
            raise ConnectionError
        if body["model"] not in self.model.split(","):
            return JSONResponse({"error": {"message": f"no model {body['model']}"}}, 404)
        chat = request.url.path == "/v1/chat/completions"
        if extends:
            assert self.model == "base"
            answer = self.prefill(body, chat)
            del answer["kv_transfer_params"]
            return JSONResponse(answer)
        if not _is_understood(body):
            return JSONResponse({"error": {"message": "what is that?"}}, 400)
        if body.get("kv_transfer_params") is None:  # as a prefill worker serves what nobody will fetch
            assert self.model == "base"
            return JSONResponse({"usage": _usage(len(rendered(body)), int(self.behaviour != "no token"), 0)})
        if body["kv_transfer_params"].get("do_remote_decode"):
            if self.pause:
                await asyncio.to_thread(self.pause.wait)
            return JSONResponse(self.prefill(body, chat))
        return self.decode(body, chat, request.headers["x-request-id"])

    def prefill(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        assert body["max_tokens"] == 1
        ids = list(rendered(body).encode())
        salt = body.get("cache_salt", "").encode()
        blocks = [salt + bytes(ids[:end]) for end in range(BLOCK_SIZE, len(ids) + 1, BLOCK_SIZE)]
        cached = 0
        while cached < len(blocks) and blocks[cached] in self.cache:
            cached += 1
        self.cache.update(blocks)
        cached_tokens = min(cached * BLOCK_SIZE, (len(ids) - 1) // BLOCK_SIZE * BLOCK_SIZE)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        response = {
            "id": "prefill",
            "model": self.model,
            "choices": [choice],
            "usage": _usage(len(ids), 1, cached_tokens),
            "kv_transfer_params": {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [[1, 2, 3]],
                "remote_engine_id": "engine",
                "remote_request_id": "remote",
                "remote_host": "127.0.0.1",
                "remote_port": 5600,
                "tp_size": 1,
            }
            | self.params,
        }
        (response if chat else choice)["prompt_token_ids"] = ids
        return response

    def decode(self, body: dict[str, Any], chat: bool, request_id: str) -> Response:
        params = body["kv_transfer_params"]
        assert params["do_remote_prefill"] is True
        assert params["remote_host"] == "127.0.0.1"
        ids = params["prompt_token_ids"] if chat else body["prompt"]
        text = f"{body['model']} read {bytes(ids).decode()}"
        head = {"id": ("chatcmpl-" if chat else "cmpl-") + request_id, "created": 1, "model": body["model"]}
        words = len(text.split())
        usage = _usage(len(ids), min(words, body.get("max_tokens", words)), len(ids) - 1)
        if self.refusals and not body.get("stream"):
            return JSONResponse(_refusal(self.refusals.pop(0)), 503)
        if body.get("stream"):
            stream = self._events(body, chat, head, text.split(" "), usage)
            return StreamingResponse(stream, media_type="text/event-stream")
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        reason = "abort" if self.behaviour == "aborts" else "stop"
        choices = [{"index": 0, **content, "finish_reason": reason}]
        kind = "chat.completion" if chat else "text_completion"
        return JSONResponse(
            head | {"object": kind, "choices": choices, "usage": usage, "kv_transfer_params": None, "metrics": None}
        )

    async def _events(
        self, body: dict[str, Any], chat: bool, head: dict[str, Any], words: list[str], usage: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        head = head | {"object": "chat.completion.chunk" if chat else "text_completion"}
        if self.behaviour == "fails":
            yield _event({"error": {"message": "KV load failed", "type": "InternalServerError", "code": 500}})
            yield b"data: [DONE]\n\n"
            return
        if chat:
            yield _event(head | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if self.behaviour == "opens":
            raise ConnectionError
        if self.refusals:
            yield b"data: " + json.dumps(_refusal(self.refusals.pop(0))).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            return
        try:
            for number, word in enumerate(words):
                text = word if number == 0 else " " + word
                content = {"delta": {"content": text}} if chat else {"text": text}
                yield _event(head | {"choices": [{"index": 0, **content, "finish_reason": None}]})
                if self.behaviour == "dies":
                    raise ConnectionError
                if self.behaviour == "ends early":
                    return
                if self.behaviour == "fails late":
                    await asyncio.sleep(0.5)
                if self.behaviour in ("fails later", "fails late"):
                    yield _event({"error": {"message": "out of luck", "type": "InternalServerError", "code": 500}})
                    yield b"data: [DONE]\n\n"
                    return
                await asyncio.sleep(30 if self.behaviour == "stalls" else 0)
                if self.pause:
                    await asyncio.to_thread(self.pause.wait)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        last = {"delta": {}} if chat else {"text": ""}
        yield _event(head | {"choices": [{"index": 0, **last, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event(head | {"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    async def _wait_for_disconnect(self, request: Request) -> None:
        for _ in range(3000):
            if await request.is_disconnected():
                self.aborted += 1
                return
            await asyncio.sleep(0.01)


def _is_understood(body: dict[str, Any]) -> bool:
    """Whether there is a prompt in it, as vLLM checks before it does anything."""
    try:
        return len(rendered(body)) > 0
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def announcement(role: str, *models: str, **fields: Any) -> dict[str, Any]:
    """What a worker says of itself that serves these models."""
    return {
        "role": role,
        "base_identity": "sha256:base",
        "models": [{"name": name, "instructions": "in_place"} for name in models],
        "block_size": BLOCK_SIZE,
        "max_model_len": 4096,
        "vllm": "0.32.0",
        "kv": {"dtype": "torch.bfloat16"},
        "handoff_key": "a1",
    } | fields


def _refusal(reason: str) -> dict[str, Any]:
    return {"error": {"message": "why", "type": "handoff_refused", "param": None, "code": reason}}


def _usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached, "created_cache_tokens": None},
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def prefill_worker(name: str = "prefill-0", url: str = "http://127.0.0.1:1") -> Worker:
    return Worker(name, "prefill", url)


def decode_worker(name: str = "sql-0", url: str = "http://127.0.0.1:1") -> Worker:
    return Worker(name, "decode", url)


class UnlimitedTicket(Ticket):
    """One that reserves nothing: there is always room, and nobody learns what becomes of it."""

    def __init__(self, prompt: str = "hello") -> None:
        self.prompt = chain_of_request({"prompt": prompt})
        self.waited_s = 0.0

    def room_to_prefill(self) -> HasRoom:
        return lambda worker, tokens: True

    def prefills_on(self, worker: Worker) -> None:
        pass

    def full(self) -> Collection[Worker]:
        return ()

    def prefilled_by(self, worker: Worker) -> None:
        pass

    def room_to_decode(self) -> HasRoom:
        return lambda worker, tokens: True

    def decodes_on(self, placed: Placed) -> Placed:
        return placed

    def prefilled(self) -> None:
        pass

    def sent(self) -> None:
        pass

    def not_taken(self) -> None:
        pass

    def pulled(self) -> None:
        pass

    def decoded(self) -> None:
        pass

    def close(self) -> None:
        pass
