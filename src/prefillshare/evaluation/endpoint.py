"""Answers of a server that speaks OpenAI's protocol: greedy, several at a time, retried when it is busy."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import openai

from prefillshare.errors import UserError
from prefillshare.evaluation.answers import Answer
from prefillshare.evaluation.config import EndpointConfig
from prefillshare.evaluation.items import Item
from prefillshare.evaluation.systems import Measurement

_REQUEST = 2  # raised when another request is made of an item: answers that were kept are to the old one


class EndpointAnswers:
    """Chat requests for prompts of messages, completions for prompts of text.

    Connection errors, 408, 409, 429 and 5xx are retried with growing pauses, or as long as `Retry-After` says.

    Raises:
        UserError: the variable that should hold the key is not set.
    """

    def __init__(self, endpoint: EndpointConfig, max_new_tokens: int) -> None:
        self._endpoint, self._limit = endpoint, max_new_tokens
        self._key = ""
        if endpoint.api_key_env is not None:
            self._key = os.environ.get(endpoint.api_key_env, "")
            if not self._key:
                raise UserError(f"endpoint.api_key_env: the variable {endpoint.api_key_env} is not set; export the key")

    def depends_on(self, measurement: Measurement) -> dict[str, Any]:
        """A server does not say which weights it has: after a change there, use overwrite_output_dir."""
        return {"url": self._endpoint.url, "model": self._endpoint.model, "request": _REQUEST}

    def answers(self, measurement: Measurement, items: list[Item]) -> Iterator[Answer]:
        """Answers in the order in which they come.

        Raises:
            UserError: the endpoint cannot be reached or refuses a request; it names the endpoint and the item.
        """
        with asyncio.Runner() as runner:  # on leaving it, requests under way are cancelled
            waiting = runner.run(self._start(items))
            while waiting:
                done, waiting = runner.run(_first(waiting))
                yield from (task.result() for task in done)

    async def _start(self, items: list[Item]) -> set[asyncio.Task[Answer]]:
        client = openai.AsyncOpenAI(
            base_url=self._endpoint.url,
            api_key=self._key or "unused",
            timeout=self._endpoint.timeout_s,
            max_retries=self._endpoint.retries,
        )
        room = asyncio.Semaphore(self._endpoint.concurrency)
        return {asyncio.create_task(self._answer(client, room, item)) for item in items}

    async def _answer(self, client: openai.AsyncOpenAI, room: asyncio.Semaphore, item: Item) -> Answer:
        async with room:
            started = time.monotonic()
            try:
                text, finish_reason = await self._call(client, item)
            except openai.OpenAIError as error:
                raise UserError(self._describe(error, item)) from None
        return Answer(item.line, text, round(time.monotonic() - started, 4), cut_off=finish_reason == "length")

    async def _call(self, client: openai.AsyncOpenAI, item: Item) -> tuple[str, str | None]:
        settings: dict[str, Any] = {"model": self._endpoint.model, "max_tokens": self._limit, "temperature": 0}
        if isinstance(item.prompt, str):
            completion = (await client.completions.create(prompt=item.prompt, **settings)).choices[0]
            return completion.text, completion.finish_reason
        if item.tools:
            settings["tools"] = item.tools
        if item.template_kwargs:  # not of OpenAI's protocol; vLLM, and so `prefillshare serve`, knows it
            settings["extra_body"] = {"chat_template_kwargs": item.template_kwargs}
        messages: Any = item.prompt
        choice = (await client.chat.completions.create(messages=messages, **settings)).choices[0]
        text = choice.message.content or ""
        if choice.message.tool_calls:  # parsed by the server: back to text, for the scorer
            text = json.dumps([call.model_dump() for call in choice.message.tool_calls])
        return text, choice.finish_reason

    def _describe(self, error: openai.OpenAIError, item: Item) -> str:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, openai.APIConnectionError):
            said += f" ({error.__cause__})" if error.__cause__ else ""
        if self._key:
            said = said.replace(self._key, "***")  # some servers repeat the key that they refuse
        return (
            f"endpoint: {self._endpoint.url} gave no answer of {self._endpoint.model!r} to the item in line "
            f"{item.line}: {said}\nCheck url, model and key; answers so far are kept, so the same command goes on."
        )


async def _first(tasks: set[asyncio.Task[Answer]]) -> tuple[set[asyncio.Task[Answer]], set[asyncio.Task[Answer]]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
