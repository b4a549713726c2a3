"""Calls of a client that knows what it must get: each is served right, fails as documented, or is a finding."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from experiments.references import Call

# The errors that a worker's failure may lead to, by code, with their statuses (docs/router.md, docs/flow.md).
DOCUMENTED = {
    "overloaded": 429,
    "worker_failed": 502,
    "worker_lost": 502,
    "kv_lost": 503,
    "not_connected": 503,
    "no_worker_available": 503,
    "worker_timed_out": 504,
}

# served: exactly the reference's tokens. failed: a documented error, after no token that is not the reference's. left:
# the client went away on purpose. The others must not happen.
Verdict = Literal["served", "failed", "left", "wrong", "undocumented", "hung"]


@dataclass(slots=True)
class Outcome:
    """What came of a call; `verdict` says how that is to be taken."""

    status: int | None = None
    tokens: list[int] = field(default_factory=list)
    code: str = ""
    finished: bool = False
    hung: bool = False
    left: bool = False
    seconds: float = 0.0

    def verdict(self, answer: list[int]) -> Verdict:
        if self.tokens != answer[: len(self.tokens)]:
            return "wrong"
        if self.hung:
            return "hung"
        if self.left:
            return "left"
        if self.finished:
            return "served" if self.tokens == answer else "wrong"
        expected = DOCUMENTED.get(self.code)
        in_stream = self.status == 200 and bool(self.tokens)  # it had begun, so that its status could not change
        return "failed" if expected and (in_stream or expected == self.status) else "undocumented"


async def make_call(
    http: aiohttp.ClientSession,
    url: str,
    call: Call,
    *,
    session: str,
    stream: bool,
    deadline_s: float,
    leave_after: int | None = None,
) -> Outcome:
    """One greedy completion through the router at `url`.

    Args:
        leave_after: so many tokens of a stream, after which the client goes away.
    """
    outcome = Outcome()
    body = {
        "model": call.model,
        "prompt": call.prompt,
        "max_tokens": len(call.answer),
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with (
            asyncio.timeout(deadline_s),
            http.post(f"{url}/v1/completions", json=body, headers={"x-session-id": session}) as response,
        ):
            outcome.status = response.status
            if stream and response.status == 200:
                async for event in _events(response):
                    _read(event, outcome)
                    if leave_after is not None and len(outcome.tokens) >= leave_after and not outcome.finished:
                        outcome.left = True
                        break
            else:
                _read(await response.json(), outcome)
                outcome.finished = response.status == 200
    except TimeoutError:
        outcome.hung = True
    except (aiohttp.ClientError, ValueError) as error:
        outcome.code = type(error).__name__
    outcome.seconds = loop.time() - started
    return outcome


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | None]:
    """The events of a stream; None for `[DONE]`."""
    async for line in response.content:
        data = line.decode().strip().removeprefix("data: ")
        if data:
            yield None if data == "[DONE]" else json.loads(data)


def _read(event: dict[str, Any] | None, outcome: Outcome) -> None:
    if event is None:
        outcome.finished = True
        return
    if error := event.get("error"):
        outcome.code = str(error.get("code"))
    for choice in event.get("choices") or []:
        outcome.tokens += choice.get("token_ids") or []
