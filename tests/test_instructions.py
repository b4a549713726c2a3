import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.instructions import place_instructions

ROLE: dict[str, Any] = {"role": "system", "content": "You write SQL."}
OTHER: dict[str, Any] = {"role": "system", "content": "You write JSON."}
USER: dict[str, Any] = {"role": "user", "content": "The schema."}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "Seen."}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT: dict[str, Any] = {"role": "tool", "content": "42"}
SHARED: dict[str, Any] = {"role": "developer", "content": "Be brief."}

texts = st.text("ab \n", max_size=4)
messages = st.lists(
    st.one_of(
        st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), texts),
        st.builds(lambda text: {"role": "system", "content": text}, texts),
        st.builds(lambda parts: {"role": "user", "content": [{"type": "text", "text": p} for p in parts]},
                  st.lists(texts, max_size=2)),
        st.just(RESULT),
        st.just(CALL),
    ),
    max_size=6,
)  # fmt: skip


def behind(*given: dict[str, Any]) -> list[Any]:
    return list(place_instructions(given, "behind_context"))


def test_in_place_changes_nothing() -> None:
    assert place_instructions([ROLE, USER], "in_place") == [ROLE, USER]


def test_the_role_goes_behind_the_last_user_message() -> None:
    placed = {"role": "user", "content": "The schema.\n\nYou write SQL."}
    assert behind(ROLE, USER) == [placed]
    assert behind(ROLE, USER, ANSWER, USER) == [USER, ANSWER, placed]


def test_behind_a_tools_result_or_an_answer_it_is_a_user_message_of_its_own() -> None:
    own = {"role": "user", "content": "You write SQL."}
    assert behind(ROLE, USER, CALL, RESULT) == [USER, CALL, RESULT, own]
    assert behind(ROLE, USER, ANSWER) == [USER, ANSWER, own]
    assert behind(ROLE) == [own]


def test_several_system_messages_move_together_and_only_from_the_front() -> None:
    assert behind(ROLE, OTHER, USER)[-1]["content"] == "The schema.\n\nYou write SQL.\n\nYou write JSON."
    assert behind(USER, ROLE, USER) == [USER, ROLE, USER]


def test_what_all_roles_share_stays_in_front() -> None:
    assert behind(ROLE, SHARED, USER)[0] == SHARED
    assert behind(SHARED, ROLE, USER) == [SHARED, ROLE, USER]


def test_a_role_without_text_adds_nothing() -> None:
    assert behind({"role": "system", "content": " \n"}, USER) == [USER]
    assert behind({"role": "system", "content": None}, USER) == [USER]


def test_parts_are_text_too() -> None:
    part = {"type": "text", "text": "The schema."}
    image = {"type": "image_url", "image_url": {"url": "x"}}
    role = {"role": "system", "content": [{"type": "text", "text": "You write"}, "SQL."]}
    assert behind(role, USER)[0]["content"] == "The schema.\n\nYou write\nSQL."
    assert behind(ROLE, {"role": "user", "content": [image, part]})[0]["content"] == [
        image,
        {"type": "text", "text": "The schema.\n\nYou write SQL."},
    ]
    assert behind(ROLE, {"role": "user", "content": [part, image]})[0]["content"][-1] == {
        "type": "text",
        "text": "You write SQL.",
    }


@pytest.mark.parametrize(
    "bad",
    [
        [{"role": "system", "content": 3}, USER],
        [{"role": "system", "content": [{"type": "image_url"}]}, USER],
        [ROLE, {"role": "user", "content": {"text": "x"}}],
    ],
)
def test_content_that_cannot_be_moved_is_refused(bad: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"content of a (system|user) message"):
        place_instructions(bad, "behind_context")


@given(messages)
def test_it_is_done_once_and_changes_no_message_that_it_was_given(given: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(given)
    once = place_instructions(given, "behind_context")
    assert place_instructions(once, "behind_context") == once
    assert given == before
    if not given or given[0]["role"] != "system":
        assert once == given


@given(messages.filter(lambda some: not some or some[0]["role"] != "system"))
def test_roles_over_one_context_differ_in_nothing_before_its_end(context: list[dict[str, Any]]) -> None:
    one, two = behind(ROLE, *context), behind(OTHER, *context)
    assert len(one) == len(two)
    assert one[:-1] == two[:-1] == context[: len(one) - 1]
    assert (one[-1] == two[-1]) is False
