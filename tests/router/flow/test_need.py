from typing import Any

import pytest

from prefillshare.router.flow.need import Need, need_of


@pytest.mark.parametrize(
    ("body", "need"),
    [
        ({"prompt": [1] * 100, "max_tokens": 7}, Need(100, 100, 7)),
        ({"prompt": "x" * 398}, Need(100, 25, 512)),
        ({"prompt": ""}, Need(1, 0, 512)),
        ({"prompt": "x" * 398, "max_tokens": 5, "max_completion_tokens": 9}, Need(100, 25, 9)),
        ({"prompt": "x" * 398, "max_tokens": True}, Need(100, 25, 512)),
        ({"prompt": "x" * 398, "max_tokens": -1}, Need(100, 25, 512)),
        ({"prompt": "x" * 398, "max_tokens": "many"}, Need(100, 25, 512)),
        ({}, Need(1, 0, 512)),
    ],
)
def test_what_a_call_takes(body: dict[str, Any], need: Need) -> None:
    assert need_of(body, 512) == need


def test_tools_are_part_of_the_prompt() -> None:
    messages = [{"role": "user", "content": "x" * 400}]
    plain, tooled = (need_of({"messages": messages} | more, 1) for more in ({}, {"tools": [{"type": "x" * 400}]}))
    assert plain.prompt == pytest.approx(110, abs=10)
    assert tooled.prompt == pytest.approx(plain.prompt + 105, abs=10)


def test_a_list_with_one_text_is_text() -> None:
    assert need_of({"prompt": ["x" * 396]}, 1).prompt == 100
