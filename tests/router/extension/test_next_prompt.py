from typing import Any

import pytest

from prefillshare.instructions import Placement, place_instructions
from prefillshare.router.call import Call
from prefillshare.router.extension.next_prompt import adds_blocks, next_prompt

ROLE = {"role": "system", "content": "You write SQL."}
ASKED = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "SELECT 1"}


def chat(*messages: dict[str, Any], salt: str | None = None, **fields: Any) -> Call:
    body = {"model": "sql", "messages": list(messages), **fields}
    return Call("id", "chat/completions", "sql", body, False, None, salt)


def completion(prompt: object) -> Call:
    return Call("id", "completions", "sql", {"model": "sql", "prompt": prompt}, False, None)


def test_it_is_the_conversation_with_the_answer_and_no_opening_of_another() -> None:
    body = next_prompt(chat(ROLE, ASKED, temperature=1), "base", "in_place", {"message": ANSWER})
    assert body == {
        "messages": [ROLE, ASKED, ANSWER],
        "add_generation_prompt": False,
        "model": "base",
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "temperature": 0,
        "n": 1,
        "stream": False,
        "return_token_ids": True,
    }


def test_it_leaves_nothing_for_a_decode_worker() -> None:
    for call in (chat(ASKED), completion("hello")):
        body = next_prompt(call, "base", "in_place", {"message": ANSWER, "text": " you"})
        assert body is not None
        assert "kv_transfer_params" not in body


def test_it_has_the_salt_and_the_tools_of_the_call() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    body = next_prompt(chat(ASKED, salt="s", tools=tools), "base", "in_place", {"message": ANSWER})
    assert body is not None
    assert (body["cache_salt"], body["tools"], body["tool_choice"]) == ("s", tools, "none")


def test_instructions_behind_the_context_are_no_part_of_it() -> None:
    body = next_prompt(chat(ROLE, ASKED), "base", "behind_context", {"message": ANSWER})
    assert body is not None
    assert body["messages"] == [ASKED, ANSWER]
    coming = place_instructions([ROLE, ASKED, ANSWER, {"role": "tool", "content": "1"}], "behind_context")
    assert coming[:2] == body["messages"]


def test_tool_calls_are_sent_back_as_clients_do() -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    said = {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None, "reasoning": "hm"}
    body = next_prompt(chat(ASKED), "base", "in_place", {"message": said})
    assert body is not None
    assert body["messages"][-1] == {"role": "assistant", "content": None, "tool_calls": calls}


def test_an_answer_that_continues_a_message_becomes_part_of_it() -> None:
    begun = {"role": "assistant", "content": "SELECT"}
    call = chat(ASKED, begun, continue_final_message=True, add_generation_prompt=False)
    body = next_prompt(call, "base", "in_place", {"message": {"role": "assistant", "content": " 1"}})
    assert body is not None
    assert body["messages"] == [ASKED, ANSWER]
    assert "continue_final_message" not in body


@pytest.mark.parametrize(
    ("prompt", "choice", "expected"),
    [
        ("hello", {"text": " you"}, "hello you"),
        (["hello"], {"text": " you"}, "hello you"),
        ([1, 2], {"text": " you", "token_ids": [3]}, [1, 2, 3]),
        ([[1, 2]], {"text": " you", "token_ids": [3]}, [1, 2, 3]),
        ([1, 2], {"text": " you"}, None),
    ],
)
def test_a_completion_goes_on_from_its_text_or_its_tokens(prompt: object, choice: Any, expected: object) -> None:
    body = next_prompt(completion(prompt), "base", "in_place", choice)
    assert (body and body["prompt"]) == expected


def test_an_answer_that_says_nothing_is_not_extended() -> None:
    assert next_prompt(chat(ASKED), "base", "in_place", {"message": {"role": "assistant", "content": ""}}) is None


@pytest.mark.parametrize(
    ("placement", "prompt", "output", "gains"),
    [
        ("in_place", 100, 27, False),
        ("in_place", 100, 28, True),
        ("in_place", 128, 127, False),
        ("in_place", 128, 128, True),
        ("behind_context", 140, 20, True),  # the context ends before 128, the answer after it
        ("behind_context", 190, 20, False),
    ],
)
def test_only_what_fills_a_block_is_a_gain(placement: Placement, prompt: int, output: int, gains: bool) -> None:
    role = {"role": "system", "content": "word" * 20}
    assert adds_blocks(chat(role, ASKED), placement, prompt, output, 128) is gains
