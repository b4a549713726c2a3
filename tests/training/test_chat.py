from typing import Any

import pytest

from prefillshare.training.chat import prints_date, render, served_messages, served_tools
from tests.training.tiny import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer()
USER = {"role": "user", "content": "x"}


def call(arguments: object) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_arguments_of_a_call_reach_the_template_as_an_object(arguments: object) -> None:
    (served,) = served_messages([call(arguments)])
    assert served["tool_calls"] == [{"id": "1", "function": {"arguments": {"a": 1}, "name": "f"}, "type": "function"}]


@pytest.mark.parametrize("arguments", ["", None, {}])
def test_a_call_without_arguments_has_an_empty_object(arguments: object) -> None:
    assert served_messages([call(arguments)])[0]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[1]", "not an object"), ([1], "not an object")],
)
def test_arguments_that_the_server_would_drop_are_refused(arguments: object, problem: str) -> None:
    with pytest.raises(ValueError, match=f"call of 'f' are {problem}"):
        served_messages([call(arguments)])


def test_fields_that_a_request_does_not_have_are_left_out() -> None:
    assert served_messages([{"role": "user", "content": "x", "weight": 1, "name": None}]) == [
        {"role": "user", "content": "x"}
    ]


def test_tools_have_the_fields_of_a_request() -> None:
    tool = {"type": "function", "function": {"parameters": {}, "name": "f", "strict": True, "extra": 1}}
    expected = [{"type": "function", "function": {"name": "f", "description": None, "parameters": {}, "strict": True}}]
    assert served_tools([tool]) == expected
    assert served_tools(None) is served_tools([]) is None


def test_a_developers_message_is_a_system_message_where_the_template_knows_no_developer() -> None:
    messages = served_messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "x"},
            {"role": "system", "content": "Be kind."},
        ]
    )
    assert render(TOKENIZER, messages, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.\n\nBe kind.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
    )
    knowing = byte_tokenizer()
    knowing.chat_template = "{# 'developer' #}" + CHATML
    assert render(knowing, messages, add_generation_prompt=False).startswith("<|im_start|>developer\nBe brief.")


def test_a_base_without_a_template_cannot_render() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"chat template refuses it: .*chat_template is not set"):
        render(tokenizer, served_messages([{"role": "user", "content": "x"}]), add_generation_prompt=True)


def test_a_template_that_prints_the_date_is_found_among_several_and_the_way_out_is_one_that_it_has() -> None:
    tokenizer = byte_tokenizer()
    assert prints_date(tokenizer) is None
    tokenizer.chat_template = None
    assert prints_date(tokenizer) is None
    tokenizer.chat_template = CHATML + "{{ strftime_now('%d %b %Y') }}"
    assert "date_string" not in (prints_date(tokenizer) or "date_string")
    told = "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    tokenizer.chat_template = {"default": CHATML, "tool_use": told}
    assert 'chat_template_kwargs: {"date_string": ' in (prints_date(tokenizer) or "")
    kwargs = {"date_string": "1 May"}
    assert render(tokenizer, [USER], tools=[{}], template_kwargs=kwargs, add_generation_prompt=True) == "1 May"
