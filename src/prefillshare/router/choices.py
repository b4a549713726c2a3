"""Several answers to one request, for `n` and for several prompts of a completion: a call each, put into one answer.

A prefill hands its KV to one decode: the prefill worker gives the blocks up once they were pulled, and vLLM would send
the same handoff with each of the `n` requests that it makes of one. So every answer has both legs. The prefill of the
further answers to a prompt starts when the first one's is over, and finds all but the last block in the cache.

The request is let in or refused with its first answer. The others ask for room one after the other, so that a request
with more answers than a worker has room for waits for its own, and is not refused for the crowd that it would be.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefillshare.router import sse
from prefillshare.router.accounting import Attribution
from prefillshare.router.answer import dump
from prefillshare.router.call import Call
from prefillshare.router.errors import RouterError, bad_request
from prefillshare.router.exchange import Exchange
from prefillshare.router.record import CallRecord
from prefillshare.router.sampling import RANGES, out_of_range
from prefillshare.router.tenants import Visit

Serve = Callable[[Exchange, Call], Awaitable[None]]


def split(call: Call, most: int) -> list[list[Call]]:
    """The calls that give the request's answers, by prompt; the call itself when one answer is asked for.

    With a seed, the answers to a prompt have seed, seed + 1, ... as in vLLM; without one, each draws its own.

    Raises:
        RouterError: 400, for an `n`, `prompt` or `seed` that says no number of answers, or more than `most` of them.
    """
    n = call.body.get("n")
    n = 1 if n is None else n
    if type(n) is not int or n < 1:
        raise bad_request("`n` must be a whole number from 1 on.", "n")
    prompts = _prompts(call)
    if n * len(prompts) > most:
        field = "n" if n > 1 else "prompt"
        raise bad_request(f"`{field}` asks for {n * len(prompts)} answers; at most {most} are given at once.", field)
    if n == len(prompts) == 1:
        return [[call]]
    seed = call.body.get("seed")
    if seed is not None and type(seed) is not int:
        raise bad_request("`seed` must be a whole number.", "seed")
    if seed is not None and not RANGES["seed"].holds(seed + n - 1):
        raise out_of_range(
            "seed", f"is {seed}, and its {n} answers have the seeds up to {seed + n - 1}", "must be lower"
        )
    return [
        [_one(call, prompt, seed, choice, number=place * n + choice) for choice in range(n)]
        for place, prompt in enumerate(prompts)
    ]


def _prompts(call: Call) -> list[dict[str, Any]]:
    """What each prompt puts into a body."""
    prompt = call.body.get("prompt")
    if call.endpoint != "completions" or not isinstance(prompt, list) or len(prompt) < 2:
        return [{}]
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [{}]
    if kinds not in ({str}, {list}):
        raise bad_request("`prompt` must be a text, token ids, or a list of either.", "prompt")
    return [{"prompt": each} for each in prompt]


def _one(call: Call, prompt: Mapping[str, Any], seed: int | None, choice: int, number: int) -> Call:
    own = {} if seed is None else {"seed": seed + choice}
    body = {**call.body, "n": 1, **prompt, **own}
    return replace(call, request_id=f"{call.request_id}-{number}", body=body, goes_on=number > 0)


async def serve_all(exchange: Exchange, prompts: Sequence[Sequence[Call]], serve: Serve) -> None:
    """Answers the request with the answers to all calls of `split`, each served by `serve`.

    The first failure ends all of them: with its status while nothing has been sent, else as the stream's last event.
    """
    whole = _Whole(exchange)
    for calls in prompts:
        first = whole.add(calls[0], None)
        for call in calls[1:]:
            whole.add(call, first)
    try:
        await _all(_answer(choice, serve) for choice in whole.choices)
    except RouterError as error:
        await exchange.fail(error)
    else:
        await whole.end()
        exchange.record.status = 200
    finally:
        _note(exchange.record, whole.choices)


class _Whole:
    """The one answer that the client gets."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.choices: list[_Choice] = []
        kind = "chatcmpl" if exchange.record.endpoint == "chat/completions" else "cmpl"
        self._head = {"id": f"{kind}-{exchange.record.request_id}", "created": int(time.time())}
        self._sending = asyncio.Lock()
        self.asking = asyncio.Lock()  # held by the choice that asks for room

    def add(self, call: Call, first: "_Choice | None") -> "_Choice":
        self.choices.append(_Choice(self, call, len(self.choices), first))
        return self.choices[-1]

    def own(self, answer: dict[str, Any], index: int) -> dict[str, Any]:
        """An answer or event of the choice at `index`, as part of the whole."""
        answer |= self._head
        for choice in answer["choices"]:
            choice["index"] = index
        return answer

    async def send(self, events: bytes) -> None:
        async with self._sending:
            self.exchange.headers |= self.choices[0].headers
            await self.exchange.events(events)

    async def end(self) -> None:
        usage = _sum_of_usage(self.choices)
        first = self.choices[0]
        if self.exchange.record.stream:
            closing = _event(first.closing | self._head | {"usage": usage}) if usage else b""
            await self.send(closing + sse.event(sse.DONE))
            await self.exchange.body(b"")
            return
        self.exchange.headers |= first.headers
        answer = first.answer | {"choices": [each for choice in self.choices for each in choice.answer["choices"]]}
        await self.exchange.whole(200, dump(answer | ({"usage": usage} if usage else {})))


class _Choice(Exchange):
    """The exchange of one answer: what would go to the client becomes part of the whole one."""

    def __init__(self, whole: _Whole, call: Call, index: int, first: "_Choice | None") -> None:
        parent = whole.exchange
        visit = first.visit if first else Visit(parent.visit.caller)  # a prompt is charged once
        super().__init__(parent.send, visit, call.endpoint)
        self.record.request_id = call.request_id
        self.record.model = call.model
        self.call = call
        self.first = first or self  # of the answers to the same prompt
        self.owns_prompt = first is None
        self.answer: dict[str, Any] = {}
        self.closing: dict[str, Any] = {}  # a stream's last event, with its usage
        self.has_prompt = asyncio.Event()
        self._whole = whole
        self._index = index

    async def ask(self) -> None:
        """Waits until it is the choice's turn to ask for room; the next one's is when it has been let in."""
        if not self.owns_prompt:
            await self.first.has_prompt.wait()
        await self._whole.asking.acquire()

    def let_in(self) -> None:
        self._whole.asking.release()

    def prefilled(self) -> None:
        self.has_prompt.set()

    async def events(self, data: bytes) -> None:
        self.streaming = True
        events = (event for event in data.split(sse.SEPARATOR) if event and sse.data_of(event) != sse.DONE)
        if ready := b"".join(map(self._own, events)):
            await self._whole.send(ready)

    def _own(self, event: bytes) -> bytes:
        answer = json.loads(sse.data_of(event))
        if not answer["choices"]:
            self.closing = answer
            return b""
        return _event(self._whole.own(answer, self._index))

    async def body(self, data: bytes, more: bool = False) -> None:
        """Only ends the stream, which the others may not have done yet."""

    async def whole(self, status: int, data: bytes, extra: Mapping[str, str] | None = None) -> None:
        self.answer = self._whole.own(json.loads(data), self._index)

    async def fail(self, error: RouterError) -> None:
        raise error

    @property
    def usage(self) -> Mapping[str, Any] | None:
        return (self.answer or self.closing).get("usage")


async def _answer(choice: _Choice, serve: Serve) -> None:
    await choice.ask()
    await serve(choice, choice.call)


async def _all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs all at once. The first error ends the others, and is raised when they have ended."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sum_of_usage(choices: Sequence[_Choice]) -> dict[str, Any]:
    """Prompt tokens of every prompt once, and how many of them were cached when it was first prefilled."""
    known = [choice.usage for choice in choices if choice.usage]
    if len(known) < len(choices):
        return {}
    firsts = [choice.usage for choice in choices if choice.owns_prompt and choice.usage]
    usage: dict[str, Any] = dict(firsts[0])
    usage["prompt_tokens"] = sum(each["prompt_tokens"] for each in firsts)
    usage["completion_tokens"] = sum(each["completion_tokens"] for each in known)
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    for field, among in (("prompt_tokens_details", firsts), ("completion_tokens_details", known)):
        if usage.get(field):
            usage[field] = _sum([each[field] for each in among])
    return usage


def _sum(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: sum(each.get(key) or 0 for each in details) if type(value) is int else value
        for key, value in details[0].items()
    }


def _note(record: CallRecord, choices: Sequence[_Choice]) -> None:
    """What is known of the call as a whole."""
    first = choices[0].record
    record.prefill_worker, record.decode_worker = first.prefill_worker, first.decode_worker
    record.prefill_seconds = first.prefill_seconds
    record.answers = len(choices)
    record.retries = sum(choice.record.retries for choice in choices)
    record.prefilled_again = any(choice.record.prefilled_again for choice in choices)
    tokens = [choice.record.tokens for choice in choices if choice.owns_prompt]
    if None not in tokens:
        record.tokens = _total([each for each in tokens if each])
    outputs = [choice.record.output_tokens for choice in choices]
    if record.status == 200 and None not in outputs:
        record.output_tokens = sum(filter(None, outputs))


def _total(tokens: Sequence[Attribution]) -> Attribution:
    payers: dict[str, int] = {}
    for each in tokens:
        for payer, paid in each.payers.items():
            payers[payer] = payers.get(payer, 0) + paid
    return Attribution(
        sum(each.prompt for each in tokens),
        sum(each.computed for each in tokens),
        sum(each.reused for each in tokens),
        sum(each.reused_from_others for each in tokens),
        payers,
    )


def _event(data: Mapping[str, Any]) -> bytes:
    return sse.event(dump(data))
