import asyncio
import json
from typing import Any

from starlette.types import Message

from prefillshare.router.extension.overheard import MAX_BYTES, Overheard, read_choice


def overhear(*bodies: bytes) -> tuple[list[Message], bytes | None]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def play() -> bytes | None:
        overheard = Overheard(send)
        await overheard({"type": "http.response.start", "status": 200, "headers": []})
        for body in bodies:
            await overheard({"type": "http.response.body", "body": body, "more_body": True})
        return overheard.answer()

    return sent, asyncio.run(play())


def streamed(*choices: dict[str, Any], usage: bool = True) -> bytes:
    events = [{"id": "1", "choices": [{"index": 0, **choice}]} for choice in choices]
    if usage:
        events.append({"id": "1", "choices": [], "usage": {"completion_tokens": 3}})
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def test_everything_is_passed_on_and_kept() -> None:
    sent, answer = overhear(b"one", b"", b"two")
    assert [message.get("body") for message in sent] == [None, b"one", b"", b"two"]
    assert answer == b"onetwo"


def test_of_a_long_answer_nothing_is_kept() -> None:
    sent, answer = overhear(b"x" * MAX_BYTES, b"y", b"z")
    assert len(sent) == 4
    assert answer is None
    assert overhear(b"x" * MAX_BYTES)[1] is not None


def test_a_whole_answer_is_read_as_it_is() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
    answer = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
    assert read_choice(answer, stream=False) == {"index": 0, "message": message}


def test_a_stream_of_text_is_put_together() -> None:
    opening = {"delta": {"role": "assistant", "content": ""}}
    answer = streamed(opening, {"delta": {"content": "a\n\n"}}, {"delta": {"content": "b"}}, {"delta": {}})
    choice = read_choice(answer, stream=True)
    assert choice is not None
    assert choice["message"] == {"role": "assistant", "content": "a\n\nb"}


def test_a_stream_of_a_completion_is_put_together() -> None:
    answer = streamed({"text": "a", "token_ids": [1, 2]}, {"text": "b", "token_ids": [3]}, {"text": ""})
    choice = read_choice(answer, stream=True)
    assert choice is not None
    assert (choice["text"], choice["token_ids"]) == ("ab", [1, 2, 3])


def test_streamed_tool_calls_are_put_together() -> None:
    def piece(index: int, **function: str) -> dict[str, Any]:
        call: dict[str, Any] = {"index": index, "function": function}
        if "name" in function:
            call |= {"id": f"call-{index}", "type": "function"}
        return {"delta": {"tool_calls": [call]}}

    choice = read_choice(
        streamed(
            piece(0, name="look", arguments=""),
            piece(0, arguments='{"at":'),
            piece(0, arguments='"it"}'),
            piece(1, name="go", arguments="{}"),
        ),
        stream=True,
    )
    assert choice is not None
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call-0", "type": "function", "function": {"name": "look", "arguments": '{"at":"it"}'}},
            {"id": "call-1", "type": "function", "function": {"name": "go", "arguments": "{}"}},
        ],
    }


def test_of_several_choices_none_is_taken() -> None:
    whole = json.dumps({"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}).encode()
    assert read_choice(whole, stream=False) is None
    assert read_choice(streamed({"text": "a"}, {"text": "b", "index": 1}), stream=True) is None
