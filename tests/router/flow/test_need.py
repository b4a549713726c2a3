from typing import Any

import pytest

from prefillshare.router.call import Endpoint
from prefillshare.router.flow.need import Need, need_of


@pytest.mark.parametrize(
    ("body", "need"),
    [
        ({"prompt": [1] * 100, "max_tokens": 7}, Need(100, 100, 7)),
        ({"prompt": "x" * 398}, Need(100, 24, 16)),
        ({"prompt": ""}, Need(1, 0, 16)),
        ({}, Need(1, 0, 16)),
    ],
)
def test_what_a_completion_takes(body: dict[str, Any], need: Need) -> None:
    assert need_of("completions", body, 512) == need


@pytest.mark.parametrize(
    ("body", "chat", "completion"),
    [
        ({}, 512, 16),
        ({"max_tokens": 5}, 5, 5),
        ({"max_completion_tokens": 9}, 9, 16),
        ({"max_tokens": 4000, "max_completion_tokens": 1}, 1, 4000),  # which vLLM's completions do not know
        ({"max_tokens": 5, "max_completion_tokens": None}, 5, 5),
        ({"max_tokens": None}, 512, 16),
        ({"max_tokens": "4000"}, 4000, 4000),  # as vLLM reads it
        ({"max_tokens": 4000.0}, 4000, 4000),
        ({"max_tokens": True}, 512, 512),
        ({"max_tokens": -1}, 512, 512),
        ({"max_tokens": "many"}, 512, 512),
        ({"max_tokens": [7]}, 512, 512),
        ({"max_tokens": " 4_000.0 "}, 4000, 4000),
        ({"max_tokens": 10**400}, 10**9, 10**9),
        ({"max_tokens": "9" * 400}, 10**9, 10**9),
        ({"max_tokens": "9" * 5000}, 512, 512),  # which a worker refuses
    ],
)
def test_an_answer_is_as_long_as_the_endpoint_lets_it_be(body: dict[str, Any], chat: int, completion: int) -> None:
    expected: dict[Endpoint, int] = {"chat/completions": chat, "completions": completion}
    assert {endpoint: need_of(endpoint, body, 512).output for endpoint in expected} == expected


def test_tools_are_part_of_the_prompt() -> None:
    messages = [{"role": "user", "content": "x" * 400}]
    plain, tooled = (
        need_of("chat/completions", {"messages": messages} | more, 1) for more in ({}, {"tools": [{"type": "x" * 400}]})
    )
    assert plain.prompt == pytest.approx(110, abs=10)
    assert tooled.prompt == pytest.approx(plain.prompt + 105, abs=10)


def test_a_list_with_one_text_is_text() -> None:
    assert need_of("completions", {"prompt": ["x" * 396]}, 1).prompt == 100


USER = {"role": "user", "content": "hi " * 10}


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [USER, {"role": "assistant", "content": "yes", "reasoning_content": "x" * 9000}]},
        {"messages": [USER, {"role": "assistant", "content": f"<think>{'x' * 9000}</think>yes"}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x" * 9000}]}]},
        {"messages": [USER, {"role": "developer", "content": "x" * 9000}]},
        {"messages": [USER | {"name": "x" * 9000}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi " * 10, "x": "x" * 9000}]}]},
        {"messages": [{"role": "user", "content": ["hi " * 10, {"type": "refusal", "text": "x" * 9000}]}]},
        {"messages": [USER], "documents": [{"text": "x" * 9000}]},
        {"messages": [USER], "tools": [{"type": "x" * 9000}]},
    ],
)
def test_only_what_every_template_renders_is_there_for_sure(more: dict[str, Any]) -> None:
    """For what may not be in the prompt no call is refused: the worker might answer it."""
    need = need_of("chat/completions", more, 512)
    assert need.least == 30 // 16
    assert need.prompt > 2000


@pytest.mark.parametrize("content", ["x" * 1600, ["x" * 1600], [{"type": "text", "text": "x" * 1600}]])
def test_what_users_say_is_there_for_sure(content: object) -> None:
    messages = [{"role": "system", "content": "x" * 999}, {"role": "user", "content": content}]
    assert need_of("chat/completions", {"messages": messages}, 512).least == 100


@pytest.mark.parametrize("messages", [None, "text", ["text"], [{"content": "x" * 900}], [{"role": "user"}]])
def test_messages_that_a_worker_will_refuse_have_nothing_for_sure(messages: object) -> None:
    assert need_of("chat/completions", {"messages": messages}, 512).least == 0
