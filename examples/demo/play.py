"""Plays a session against a running deployment and measures every call."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from openai import AsyncOpenAI, AsyncStream
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

Message = dict[str, str]
Turn = tuple[str, str, str]  # the module to call, what the user says, the answer that is expected

MAX_ANSWER_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it was measured. Token counts are the router's, which has them from the base's worker."""

    model: str
    prompt_tokens: int
    computed_tokens: int  # the base had to compute them
    reused_tokens: int
    reused_from_others_tokens: int  # of the reused: another model's call had paid for them
    prefill_ms: float
    handoff_bytes: int
    handoff_ms: float
    first_token_ms: float
    answer: str
    expected: str
    prompt_token_ids: tuple[int, ...] = field(repr=False)

    @property
    def correct(self) -> bool:
        return self.answer.strip() == self.expected


@dataclass(frozen=True, slots=True)
class Handoffs:
    """What a decode worker has pulled since it started."""

    bytes: int = 0
    seconds: float = 0.0


class Player:
    """Calls one after the other, so that what a decode worker's counters grow by belongs to the call just made."""

    def __init__(
        self, *, router: str, prefill: str, worker_key: str, base: str, decode: Mapping[str, str], console: Console
    ) -> None:
        """`router` and `prefill` are URLs, `base` the base's served name, `decode` the decode workers' URLs by name.

        `worker_key` is what the prefill worker asks for.
        """
        self._client = AsyncOpenAI(base_url=f"{router}/v1", api_key="none", max_retries=0, timeout=300)
        self._http = httpx.AsyncClient(timeout=60)
        self._prefill = prefill
        self._worker_key = worker_key
        self._base = base
        self._decode = decode
        self._console = console

    async def play(self, context: Sequence[Message], turns: Sequence[Turn]) -> list[Call]:
        """Calls the modules in turn; every question and its answer join the context of the calls after it."""
        messages = list(context)
        pulled = {worker: await self._handoffs(worker) for worker in self._decode}
        calls = []
        for model, question, expected in turns:
            messages.append({"role": "user", "content": question})
            call, worker = await self._call(model, messages, expected, pulled)
            pulled[worker] = await self._handoffs(worker)
            calls.append(call)
            messages.append({"role": "assistant", "content": call.answer})
        return calls

    async def close(self) -> None:
        await self._client.close()
        await self._http.aclose()

    async def _call(
        self, model: str, messages: list[Message], expected: str, pulled: Mapping[str, Handoffs]
    ) -> tuple[Call, str]:
        self._console.print(f"\n[bold cyan]{model}[/] [dim]<[/] ", end="")
        self._console.print(messages[-1]["content"], markup=False, highlight=False)
        self._console.print(f"[bold cyan]{model}[/] [dim]>[/] ", end="")
        began = time.perf_counter()
        response = await self._client.chat.completions.with_raw_response.create(
            model=model,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=MAX_ANSWER_TOKENS,
            stream=True,
        )
        stream = response.parse()
        assert isinstance(stream, AsyncStream)
        answer, first_token_ms = "", 0.0
        async for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                first_token_ms = first_token_ms or (time.perf_counter() - began) * 1000
                answer += text
                self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.print()

        def header(name: str) -> str:
            return response.headers[f"x-prefillshare-{name}"]

        worker = header("decode-worker")
        after = await self._handoffs(worker)
        call = Call(
            model=model,
            prompt_tokens=int(header("prompt-tokens")),
            computed_tokens=int(header("computed-tokens")),
            reused_tokens=int(header("reused-tokens")),
            reused_from_others_tokens=int(header("reused-from-others-tokens")),
            prefill_ms=float(header("prefill-ms")),
            handoff_bytes=after.bytes - pulled[worker].bytes,
            handoff_ms=(after.seconds - pulled[worker].seconds) * 1000,
            first_token_ms=first_token_ms,
            answer=answer,
            expected=expected,
            prompt_token_ids=await self._tokenize(messages),
        )
        return call, worker

    async def _handoffs(self, worker: str) -> Handoffs:
        """vLLM counts a pull in the engine step that sees it finished, so before the first token is sent."""
        response = await self._http.get(f"{self._decode[worker]}/metrics")
        response.raise_for_status()
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.name in ("vllm:nixl_bytes_transferred_sum", "vllm:nixl_xfer_time_seconds_sum")
        }
        return Handoffs(
            bytes=int(found.get("vllm:nixl_bytes_transferred_sum", 0)),
            seconds=found.get("vllm:nixl_xfer_time_seconds_sum", 0.0),
        )

    async def _tokenize(self, messages: list[Message]) -> tuple[int, ...]:
        """The prompt as the base saw it; needed only to count what no sharing would have cost."""
        body = {"model": self._base, "messages": messages, "add_generation_prompt": True}
        headers = {"authorization": f"Bearer {self._worker_key}"}
        response = await self._http.post(f"{self._prefill}/tokenize", json=body, headers=headers)
        response.raise_for_status()
        return tuple(response.json()["tokens"])
