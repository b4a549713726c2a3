"""Clients of OpenAI's API, as they are, against real workers behind the router."""

import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from prefillshare.engine.worker import WorkerSpec
from prefillshare.router.app import create_app
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import RouterConfig
from tests.e2e.conftest import BLOCK_SIZE, Workers
from tests.e2e.support import url
from tests.router.fakes import Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KEY = "unused"
TOKENS = 16
ENOUGH = 80  # for a tool call
ON: Any = {"ignore_eos": True}  # so that every answer is as long as may be
SHOWN: Any = ON | {"skip_special_tokens": False}
CONTEXT = "You keep the logbook of a lighthouse. " * 6
TOO_LONG = "word " * 600
MESSAGES: Any = [{"role": "system", "content": CONTEXT}, {"role": "user", "content": "Which colour has the sky?"}]


class Sight(BaseModel):
    """What was seen from the lighthouse."""

    thing: Literal["ship", "whale", "fog"]
    count: int = Field(ge=1, le=3)


SIGHT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"thing": {"enum": ["ship", "whale", "fog"]}, "count": {"enum": [1, 2, 3]}},
    "required": ["thing", "count"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "note_sight", "description": "Notes it.", "parameters": SIGHT_SCHEMA, "strict": True},
}
# What a model that was trained on tools would write by itself; here it has no choice.
CALL = (
    r'<tool_call>\n\{"name": "note_sight", "arguments": \{"thing": "(ship|whale|fog)", "count": [123]\}\}\n</tool_call>'
)


@pytest.fixture(scope="module")
def api(workers: Workers) -> Iterator[str]:
    """The router's address as clients are given it. `lora` and `wide` share a worker with a parser, `full` has none."""

    def pool(name: str, spec: WorkerSpec) -> Pool:
        return Pool(name, [Worker(spec.name, spec.role, url(spec))])

    prefill, adapters = pool("prefill", workers.prefill), pool("decode/adapters", workers.lora)
    parser = workers.lora.parsers.tool_call_parser
    routes = {name: ModelRoute("base", prefill, adapters, tool_call_parser=parser) for name in ("lora", "wide")}
    routes["full"] = ModelRoute("base", prefill, pool("decode/full", workers.full))
    app = create_app(RouterConfig(), routes, workers.facts)
    served = Served(app)
    try:
        yield f"{served.url}/v1"
    finally:
        served.stop()


@pytest.fixture(scope="module")
def client(api: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=api, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": "lora", "messages": MESSAGES, "temperature": 0, "max_completion_tokens": TOKENS}
    return client.chat.completions.create(**(given | fields))


def called(message: Any) -> dict[str, Any]:
    """The arguments of the one tool call, which are as the tool's schema says."""
    (call,) = message.tool_calls
    assert (call.type, call.function.name) == ("function", "note_sight")
    return sight(call.function.arguments)


def sight(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    Sight.model_validate(found)
    return found


def test_usage_and_logprobs(client: openai.OpenAI) -> None:
    ask(client, max_completion_tokens=2)
    answer = ask(client, model="wide", max_completion_tokens=8, logprobs=True, top_logprobs=3, extra_body=SHOWN)
    usage = answer.usage
    assert usage.completion_tokens == 8
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token for token in tokens)
    assert answer.choices[0].finish_reason == "length"


async def test_the_async_client_streams_the_same_answer(api: str, client: openai.OpenAI) -> None:
    whole = ask(client, extra_body=ON).choices[0].message.content
    async with openai.AsyncOpenAI(base_url=api, api_key=KEY, max_retries=0) as client_:
        stream = await client_.chat.completions.create(
            model="lora",
            messages=MESSAGES,
            temperature=0,
            max_completion_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=ON,
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == TOKENS


def test_a_stop_and_a_seed(client: openai.OpenAI) -> None:
    whole = ask(client, extra_body=ON).choices[0].message.content
    stop = whole[7:10]
    stopped = ask(client, stop=[stop], extra_body=ON).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    sampled = [ask(client, temperature=1, seed=7, max_completion_tokens=12) for _ in range(2)]
    assert sampled[0].choices[0].message.content == sampled[1].choices[0].message.content


def test_n_gives_the_answers_of_the_seeds_that_follow(client: openai.OpenAI) -> None:
    sampling = {"temperature": 2, "max_completion_tokens": 12, "extra_body": ON}
    single = [ask(client, seed=seed, **sampling).choices[0].message.content for seed in (3, 4, 5)]
    assert len(set(single)) == 3
    together = ask(client, n=3, seed=3, **sampling)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.message.content for choice in together.choices] == single
    assert together.usage.completion_tokens == 36
    assert together.usage.prompt_tokens == ask(client, max_completion_tokens=1).usage.prompt_tokens
    texts = ["", "", ""]
    for chunk in ask(client, n=3, seed=3, stream=True, **sampling):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == single


def test_several_prompts_of_a_completion(client: openai.OpenAI) -> None:
    prompts = ["The sky is", "A spider has"]
    one = {"model": "lora", "temperature": 0, "max_tokens": 6}
    single = [client.completions.create(prompt=prompt, **one).choices[0].text for prompt in prompts]
    assert [choice.text for choice in client.completions.create(prompt=prompts, **one).choices] == single


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "note_sight"}}], ids=str)
def test_a_forced_tool_call(client: openai.OpenAI, choice: Any) -> None:
    forced = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_completion_tokens": ENOUGH}
    answer = ask(client, **forced)
    arguments = called(answer.choices[0].message)
    pieces = [chunk.choices[0] for chunk in ask(client, stream=True, **forced) if chunk.choices]
    calls = [call for piece in pieces for call in piece.delta.tool_calls or []]
    assert calls[0].id
    assert calls[0].function.name == "note_sight"
    assert sight("".join(call.function.arguments or "" for call in calls)) == arguments
    assert pieces[-1].finish_reason == answer.choices[0].finish_reason


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}], ids=str)
def test_a_tool_call_that_the_model_decides_for_is_found(client: openai.OpenAI, choice: dict[str, Any]) -> None:
    bound: Any = {"structured_outputs": {"regex": CALL}}
    answer = ask(client, tools=[TOOL], max_completion_tokens=ENOUGH, extra_body=bound, **choice)
    called(answer.choices[0].message)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_no_tool_call(client: openai.OpenAI) -> None:
    plain = ask(client).choices[0].message
    message = ask(client, tools=[TOOL], tool_choice="none").choices[0].message
    assert (message.content, message.tool_calls) == (plain.content, None)  # this base's chat template shows no tools
    text = ask(client, tools=[TOOL], tool_choice="none", extra_body={"structured_outputs": {"regex": CALL}})
    assert text.choices[0].message.content.startswith("<tool_call>")


def test_the_result_of_a_tool_can_be_answered(client: openai.OpenAI) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "note_sight", "arguments": "{}"}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "tool_call_id": "call-1", "content": "noted"}]
    answer = ask(client, messages=[*MESSAGES, *turns], tools=[TOOL])
    assert answer.choices[0].message.content


def test_an_answer_in_the_form_of_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="lora", messages=MESSAGES, response_format=Sight, max_tokens=ENOUGH)
    assert isinstance(parsed.choices[0].message.parsed, Sight)
    with client.chat.completions.stream(
        model="lora", messages=MESSAGES, response_format=Sight, max_completion_tokens=ENOUGH
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Sight)
    schema = {"type": "json_schema", "json_schema": {"name": "sight", "schema": SIGHT_SCHEMA}}
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in ask(
            client, response_format=schema, temperature=1, seed=1, stream=True, max_completion_tokens=ENOUGH
        )
    )
    sight(text)
    wild = ask(client, model="wide", response_format=schema, temperature=1, n=3, seed=1, max_completion_tokens=ENOUGH)
    assert all(sight(choice.message.content) for choice in wild.choices)


def test_any_json_object(client: openai.OpenAI) -> None:
    (choice,) = ask(client, response_format={"type": "json_object"}, max_completion_tokens=ENOUGH).choices
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(choice.message.content), dict)


def test_refusals_are_the_clients_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, functions=[{"name": "f"}])
    assert (refused.value.param, refused.value.code) == ("functions", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="tool_call_parser"):
        ask(client, model="full", tools=[TOOL])
    with pytest.raises(openai.NotFoundError, match="lora"):
        ask(client, model="other")
    with pytest.raises(openai.NotFoundError, match="POST /v1/chat/completions"):
        client.responses.create(model="lora", input="hi")
    with pytest.raises(openai.BadRequestError, match="The prompt is too long: ") as refusal:
        ask(client, messages=[{"role": "user", "content": TOO_LONG}])
    assert refusal.value.code == "context_length_exceeded"
    assert {model.id for model in client.models.list()} == {"lora", "wide", "full"}


@pytest.fixture(scope="module")
def chat(api: str) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(
        model="lora", base_url=api, api_key=KEY, temperature=0, max_tokens=TOKENS, max_retries=0, stream_usage=True
    )


def test_langchain_invokes_and_streams(chat: Any, client: openai.OpenAI) -> None:
    prompt = [("system", CONTEXT), ("user", MESSAGES[1]["content"])]
    text = ask(client).choices[0].message.content
    answer = chat.invoke(prompt)
    assert answer.content == text
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
    chunks = list(chat.stream(prompt))
    assert "".join(chunk.content for chunk in chunks) == text
    usage = [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata]
    assert sum(usage) == answer.usage_metadata["output_tokens"]


async def test_langchain_calls_tools_and_gives_structure(chat: Any) -> None:
    chat = chat.model_copy(update={"max_tokens": ENOUGH})
    forced = {"tool_choice": "any", "parallel_tool_calls": False, "strict": True}
    (call,) = chat.bind_tools([Sight], **forced).invoke("What did you see?").tool_calls
    assert call["name"] == "Sight"
    Sight.model_validate(call["args"])
    for method in ("json_schema", "function_calling"):
        found = await chat.with_structured_output(Sight, method=method, strict=True).ainvoke("What did you see?")
        assert isinstance(found, Sight), method


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches one
    return pytest.importorskip("litellm")


async def test_litellm_completes_streams_and_calls_tools(litellm: Any, api: str, client: openai.OpenAI) -> None:
    given = {"model": "openai/lora", "api_base": api, "api_key": KEY, "messages": MESSAGES, "temperature": 0}
    text = ask(client).choices[0].message.content
    answer = litellm.completion(**given, max_tokens=TOKENS)
    assert answer.choices[0].message.content == text
    assert answer.usage.prompt_tokens_details.cached_tokens > 0
    stream = litellm.completion(**given, max_tokens=TOKENS, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    forced = await litellm.acompletion(**given, max_tokens=ENOUGH, tools=[TOOL], tool_choice="required")
    sight(forced.choices[0].message.tool_calls[0].function.arguments)
    two = litellm.completion(**given, max_tokens=4, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]


def test_frameworks_know_a_prompt_that_is_too_long(chat: Any, litellm: Any, api: str) -> None:
    overflow = pytest.importorskip("langchain_core.exceptions").ContextOverflowError
    with pytest.raises(overflow):
        chat.invoke(TOO_LONG)
    messages = [{"role": "user", "content": TOO_LONG}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model="openai/lora", api_base=api, api_key=KEY, messages=messages)
