"""training/chat.py against the server itself. It is tested here because only this room may import vLLM."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import safe_apply_chat_template

from prefillshare.training.chat import served_messages, served_template_kwargs, served_tools
from prefillshare.training.conversation import render_prompt
from tests.training import templates
from tests.training.tiny import byte_tokenizer

USER = {"role": "user", "content": "How many?"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": [null], "a": {"c": null}}'}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f"}},
    {"function": {"parameters": {"type": "object"}, "strict": False, "name": "g", "description": "d", "more": 1}},
    {"function": {"defer_loading": False, "name": "h"}, "defer_loading": True},
    {"function": {"defer_loading": None, "name": "i"}, "defer_loading": True},
    {"function": {"name": "j"}, "defer_loading": None},
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": "s"}, USER],
    [{"role": "system", "content": "s", "name": "n"}, {"role": "user", "content": "u", "name": "bob", "extra": 1}],
    [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ],
    [USER, {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "2"}]}],
    [USER, {"role": "assistant", "content": "x", "reasoning_content": "why", "tool_calls": []}, USER],
    [USER, {"role": "assistant", "content": "x", "reasoning": "why", "tool_calls": None}, USER],
    [{"role": "user", "content": "u", "task": "t"}],
    [USER, {"role": "assistant", "content": "x", "reasoning": None, "reasoning_content": "why"}, USER],
    [USER, {"role": "assistant", "content": "x", "reasoning": "", "reasoning_content": "why"}, USER],
    [USER, {"role": "assistant", "content": "x", "reasoning": "one", "reasoning_content": "other"}, USER],
    [{"role": "system", "content": "x-anthropic-billing-header: cch=1;\nYou count.\nWell."}, USER],
    [{"role": "system", "content": "x-anthropic-billing-header: cch=1;"}, USER],
    [{"role": "developer", "content": "x-anthropic-billing-header: cch=1;\nYou count."}, USER],
    [{"role": "user", "content": "x-anthropic-billing-header: cch=1;\nHow many?"}],
    [{"role": "system", "content": " x-anthropic-billing-header: cch=1;\nYou count."}, USER],
    [{"role": "developer", "content": "d"}, USER, {"role": "system", "content": "s"}, USER],
]
# As little of vLLM's model config as text needs.
TEXT_MODEL: Any = SimpleNamespace(multimodal_config=None, is_multimodal_model=False, enable_prompt_embeds=False)


def parsed(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> tuple[list[Any], list[Any] | None]:
    """What vLLM gives to the template."""
    body = {"model": "m", "messages": messages} | ({"tools": tools} if tools else {})
    request = ChatCompletionRequest.model_validate(body)
    conversation, _, _ = parse_chat_messages(request.messages, TEXT_MODEL, content_format="string")
    return conversation, [tool.model_dump() for tool in request.tools] if request.tools else None


@pytest.mark.parametrize("messages", CHATS)
def test_messages_reach_the_template_as_they_do_in_the_server(messages: list[dict[str, Any]]) -> None:
    served = served_messages(messages)
    conversation, _ = parsed(messages, None)
    assert served == conversation
    # Some templates print whole objects, so the order of fields counts.
    calls = [[list(call["function"]) for call in message.get("tool_calls", ())] for message in conversation]
    assert [[list(call["function"]) for call in message.get("tool_calls", ())] for message in served] == calls


def test_tools_reach_the_template_as_they_do_in_the_server() -> None:
    served = served_tools(TOOLS)
    assert str(served) == str(parsed([USER], TOOLS)[1])


def test_arguments_of_the_template_reach_it_as_they_do_in_the_server() -> None:
    kwargs = {"a": None, "b": "auto", "c": False, "d": 0, "e": "", "f": {"g": None}, "chat_template": None}
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": [USER], "chat_template_kwargs": kwargs})
    params = request.build_chat_params(None, "auto").with_defaults({"tokenize": False})
    ours = kwargs.keys() & params.get_apply_chat_template_kwargs().keys()
    assert served_template_kwargs(kwargs) == {key: params.chat_template_kwargs[key] for key in ours}
    assert served_template_kwargs(None) == {}


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_prompts_have_the_tokens_that_the_server_sees(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = templates.TOOLS
    monkeypatch.setattr("vllm.renderers.hf.resolve_chat_template", lambda *_, **__: templates.TOOLS)
    conversation, dumped = parsed(messages, tools)
    text = safe_apply_chat_template(
        TEXT_MODEL, tokenizer, conversation, tools=dumped, tokenize=False, add_generation_prompt=True
    )
    assert render_prompt(messages, tokenizer, tools) == tokenizer(text, add_special_tokens=False)["input_ids"]
