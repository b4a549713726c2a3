from typing import Any

import pytest

from prefillshare.router.admission import Endpoint
from prefillshare.router.flow.need import Need, need_of


@pytest.mark.parametrize(
    ("body", "need"),
    [
        ({"prompt": [1] * 100, "max_tokens": 7}, Need(100, 100, 7)),
        ({"prompt": "x" * 398}, Need(100, 25, 16)),
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
