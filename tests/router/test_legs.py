from dataclasses import replace
from typing import Any

import pytest

from prefillshare.router.call import Call, Endpoint
from prefillshare.router.errors import RouterError
from prefillshare.router.legs import Handoff, asks_for_usage, decode_body, prefill_body, read_prefill
from tests.router.fakes import prefill_worker

PARAMS: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[4, 5]],
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
}
CHAT_ANSWER: dict[str, Any] = {
    "choices": [{"finish_reason": "length"}],
    "prompt_token_ids": [1, 2, 3],
    "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
    "kv_transfer_params": PARAMS,
}


def make_call(endpoint: Endpoint = "chat/completions", **body: Any) -> Call:
    return Call("id", endpoint, "sql", {"model": "sql"} | body, False, None)


def test_the_prefill_leg_carries_the_prompt_and_nothing_else() -> None:
    prompt = {
        "messages": [{"role": "user", "content": "hi"}],
        "documents": [{"text": "d"}],
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
        "add_generation_prompt": False,
        "continue_final_message": True,
        "add_special_tokens": True,
    }
    rest = {
        "max_tokens": 500,
        "max_completion_tokens": 600,
        "min_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["\n"],
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 1.5,
        "user": "u",
        "prompt_cache_key": "k",
    }
    assert prefill_body(make_call(**prompt, **rest), "base") == prompt | {
        "model": "base",
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "temperature": 0,
        "n": 1,
        "stream": False,
        "return_token_ids": True,
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        },
    }


def test_tools_shape_the_prompt_but_the_prefill_worker_parses_no_tool_call() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = prefill_body(make_call(tools=tools, tool_choice="required"), "base")
    assert body["tools"] == tools
    assert body["tool_choice"] == "none"
    assert "tool_choice" not in prefill_body(make_call(tools=None, tool_choice="auto"), "base")


def test_instructions_go_where_the_module_was_trained_to_read_them() -> None:
    messages = [{"role": "system", "content": "You write SQL."}, {"role": "user", "content": "The schema."}]
    call = make_call(messages=messages)
    assert prefill_body(call, "base")["messages"] == messages
    behind = prefill_body(call, "base", "behind_context")["messages"]
    assert behind == [{"role": "user", "content": "The schema.\n\nYou write SQL."}]
    assert call.body["messages"] is messages


def test_the_message_that_the_answer_continues_stays_last() -> None:
    messages = [
        {"role": "system", "content": "You write SQL."},
        {"role": "user", "content": "The schema."},
        {"role": "assistant", "content": "SELECT"},
    ]
    body = prefill_body(make_call(messages=messages, continue_final_message=True), "base", "behind_context")
    assert body["messages"] == [{"role": "user", "content": "The schema.\n\nYou write SQL."}, messages[-1]]


def test_instructions_that_cannot_be_moved_are_the_clients_mistake() -> None:
    call = make_call(messages=[{"role": "system", "content": 3}])
    with pytest.raises(RouterError, match="system message must be text") as caught:
        prefill_body(call, "base", "behind_context")
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize("messages", ["text", None, ["text"], []])
def test_messages_of_another_shape_are_left_to_the_worker(messages: object) -> None:
    assert prefill_body(make_call(messages=messages), "base", "behind_context")["messages"] == messages


def test_a_completion_has_no_chat_fields() -> None:
    body = prefill_body(make_call("completions", prompt="hi", max_tokens=9), "base")
    assert body["prompt"] == "hi"
    assert body["max_tokens"] == 1
    assert "max_completion_tokens" not in body


def test_the_decode_leg_is_the_clients_body_with_the_kv_and_the_bases_token_ids() -> None:
    handoff = Handoff(PARAMS, [1, 2, 3], 2)
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "stop": ["x"], "stream": True}
    assert decode_body(make_call(**chat), handoff) == chat | {
        "model": "sql",
        "kv_transfer_params": PARAMS | {"prompt_token_ids": [1, 2, 3]},
    }
    text = decode_body(make_call("completions", prompt="hi", max_tokens=9), handoff)
    assert text == {"model": "sql", "prompt": [1, 2, 3], "max_tokens": 9, "kv_transfer_params": PARAMS}
    assert "prompt_token_ids" not in PARAMS


def test_both_legs_carry_the_salt_of_the_caller_and_never_the_clients() -> None:
    for endpoint, prompt in (("chat/completions", {"messages": []}), ("completions", {"prompt": "hi"})):
        call = replace(make_call(endpoint, cache_salt="mine", **prompt), salt="ours")
        bodies = (prefill_body(call, "base"), decode_body(call, Handoff(PARAMS, [1], 0)))
        assert [body["cache_salt"] for body in bodies] == ["ours", "ours"]
    assert "cache_salt" not in prefill_body(make_call(prompt="hi"), "base")


def test_the_prefill_answer_gives_kv_ids_and_cached_tokens() -> None:
    found = read_prefill(make_call(), prefill_worker(), CHAT_ANSWER)
    assert found == Handoff(PARAMS, [1, 2, 3], 2)
    text = {"choices": [{"prompt_token_ids": [7, 8]}], "kv_transfer_params": PARAMS}
    assert read_prefill(make_call("completions"), prefill_worker(), text).prompt_token_ids == [7, 8]


@pytest.mark.parametrize(
    ("usage", "extra", "cached"),
    [
        ({"prompt_tokens_details": None}, {"remote_prefill_cached_tokens": 1}, 1),
        ({"prompt_tokens_details": {"cached_tokens": 0}}, {"remote_prefill_cached_tokens": 1}, 0),
        (None, {}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 99}}, {}, 3),
    ],
)
def test_cached_tokens_come_from_usage_or_else_from_the_connector(usage: Any, extra: Any, cached: int) -> None:
    answer = CHAT_ANSWER | {"usage": usage, "kv_transfer_params": PARAMS | extra}
    assert read_prefill(make_call(), prefill_worker(), answer).cached_tokens == cached


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in PARAMS.items() if key != field}


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        "text",
        *(without(field) for field in PARAMS if field.startswith("remote_") or field == "do_remote_prefill"),
        *(PARAMS | {field: None} for field in PARAMS if field.startswith("remote_")),
        PARAMS | {"do_remote_prefill": False},
        PARAMS | {"remote_block_ids": []},
        PARAMS | {"remote_block_ids": [[]]},
        PARAMS | {"remote_host": ""},
    ],
)
def test_without_complete_parameters_there_is_no_kv(params: object) -> None:
    with pytest.raises(RouterError, match="prefill returned no KV") as caught:
        read_prefill(make_call(), prefill_worker(), CHAT_ANSWER | {"kv_transfer_params": params})
    assert caught.value.status == 502


@pytest.mark.parametrize("ids", [None, [], ["a"], "text"])
def test_without_the_bases_token_ids_there_is_no_decode_leg(ids: object) -> None:
    with pytest.raises(RouterError, match="no prompt token ids") as caught:
        read_prefill(make_call(), prefill_worker(), CHAT_ANSWER | {"prompt_token_ids": ids})
    assert caught.value.status == 502


@pytest.mark.parametrize("answer", [None, [], "text", {"choices": None}])
def test_an_answer_of_another_shape_is_a_bad_gateway(answer: object) -> None:
    for endpoint in ("chat/completions", "completions"):
        with pytest.raises(RouterError) as caught:
            read_prefill(make_call(endpoint), prefill_worker(), answer)
        assert caught.value.status == 502


@pytest.mark.parametrize(
    ("options", "sent", "asked"),
    [
        (None, {"include_usage": True, "continuous_usage_stats": False}, False),
        (
            {"include_usage": False, "continuous_usage_stats": True, "x": 1},
            {"include_usage": True, "continuous_usage_stats": False, "x": 1},
            False,
        ),
        ({"include_usage": True, "continuous_usage_stats": True}, None, True),
        ("text", None, True),
    ],
)
def test_the_router_learns_the_usage_of_every_stream(options: Any, sent: Any, asked: bool) -> None:
    call = Call("id", "completions", "sql", {"model": "sql", "stream": True, "stream_options": options}, True, None)
    handoff = Handoff(PARAMS, [1], 0)
    assert asks_for_usage(call) is asked
    assert decode_body(call, handoff)["stream_options"] == (sent or options)
    assert "stream_options" not in decode_body(make_call(), handoff)
