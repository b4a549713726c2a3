"""A row of data -> token ids, and where in them the responses are.

The row formats are TRL's:

    {"prompt": "text", "completion": "text"}
    {"prompt": [messages], "completion": [messages, the first and the last of them the assistant's]}
    {"messages": [messages]}

Every assistant message of `completion` or `messages` is trained; `prompt` is context. Conversational rows may have
`tools` and `chat_template_kwargs`, as a chat request has. Prompts are rendered as the server renders the request
(chat.py), and a response is what the chat template puts behind its prompt, up to and including the end-of-sequence
token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from prefillshare.instructions import Placement, place_instructions
from prefillshare.training.chat import Message, Tool, render, served_messages, served_template_kwargs, served_tools

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as token ids, and where its responses are.

    `ids` ends with the last response's end-of-sequence token. `spans` are the half-open [start, end) of the responses,
    ascending and disjoint, start >= 1; each ends in the end-of-sequence token. `ids[:start]` is exactly the prompt that
    a server sees for that turn.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class BadRow(Exception):
    """A row that cannot be trained on: what is wrong, with the field when it is one field that is wrong."""

    def __init__(self, field: str | None, problem: str) -> None:
        super().__init__(problem if field is None else f"field {field!r}: {problem}")


class _Turn(NamedTuple):
    """The text of a turn's prompt, and of that prompt with its response."""

    prompt: str
    whole: str


def read_row(row: Row, tokenizer: PreTrainedTokenizerBase, instructions: Placement = "in_place") -> list[Example]:
    """The examples of a row: one, or one for each turn when the turns cannot share their token ids.

    They can when every turn's prompt and response are a prefix of the whole conversation. A template that leaves the
    reasoning of earlier turns out, or instructions that stand behind each turn's prompt, prevent that.

    Raises:
        BadRow: it has another form, a response is empty, or a prompt does not tokenise as the start of its turn.
    """
    if row.get("messages") is None and isinstance(row.get("prompt"), str):
        return [_text_example(row, tokenizer)]
    messages, trained, field = _conversation(row)
    try:
        kwargs = served_template_kwargs(row.get("chat_template_kwargs"))
    except ValueError as error:
        raise BadRow("chat_template_kwargs", str(error)) from None
    try:
        tools = served_tools(row.get("tools"))
    except ValueError as error:
        raise BadRow("tools", str(error)) from None
    turns = []
    try:
        served = served_messages(messages)
        for place in trained:
            # Placed first, as the router does: vLLM sees what it made of them.
            context = served_messages(place_instructions(messages[:place], instructions))
            if not context:
                raise BadRow(field, "it starts with a response, which no prompt precedes")
            prompt, whole = (
                render(tokenizer, some, tools=tools, template_kwargs=kwargs, add_generation_prompt=open_end)
                for some, open_end in ((context, True), ([*context, served[place]], False))
            )
            _check_calls(served[place], whole[len(prompt) :], field)
            for part in ("content", "reasoning_content"):
                _check_end(served[place].get(part) or "", field, tokenizer)
            turns.append(_Turn(prompt, _without_white_space(prompt, whole, served[place]["content"], tokenizer)))
    except ValueError as error:
        raise BadRow(field, str(error)) from None
    if len(turns) > 1 and (example := _together(turns, tokenizer)):
        return [example]
    examples = []
    for turn in turns:
        prompt_ids, whole_ids = _encode(tokenizer, turn)
        examples.append(_alone(prompt_ids, whole_ids, field, tokenizer))
    return examples


def render_prompt(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    tools: list[Tool] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a chat request, as the server sees them. `template_kwargs` are its `chat_template_kwargs`.

    Raises:
        ValueError: the base's chat template refuses the messages, the tools are not those of a chat request, or
            `template_kwargs` bring another chat template along.
    """
    text = render(
        tokenizer,
        served_messages(messages),
        tools=served_tools(tools),
        template_kwargs=served_template_kwargs(template_kwargs),
        add_generation_prompt=True,
    )
    return _encode(tokenizer, [text])[0]


def _conversation(row: Row) -> tuple[list[Message], list[int], str]:
    """The messages of a row, which of them are trained, and the field that holds those."""
    if row.get("messages") is not None:
        field, prompt, rest = "messages", [], _messages(row, "messages")
    else:
        field, prompt, rest = "completion", _messages(row, "prompt"), _messages(row, "completion")
        for message in (rest[0], rest[-1]):
            if message["role"] != "assistant":
                raise BadRow(field, f"it must begin and end with the assistant, found role {message['role']!r}")
    responses = [number for number, message in enumerate(rest) if message["role"] == "assistant"]
    if not responses:
        raise BadRow(field, "no assistant turn, so nothing to train on")
    for number in responses:
        if not ((rest[number].get("content") or "").strip() or rest[number].get("tool_calls")):
            raise BadRow(f"{field}[{number}]", "the response is empty")
    return [*prompt, *rest], [len(prompt) + number for number in responses], field


def _messages(row: Row, field: str) -> list[Message]:
    messages = row.get(field)
    if messages is None:
        found = ", ".join(map(repr, row)) or "no fields"
        raise BadRow(field, f"missing; a row has 'prompt' and 'completion', or 'messages' (found {found})")
    if not isinstance(messages, list) or not messages:
        raise BadRow(field, f"expected a list of messages, found {messages!r:.80}")
    for number, message in enumerate(messages):
        _check_message(message, f"{field}[{number}]")
    return messages


def _check_message(message: object, field: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRow(field, f"a message needs the texts 'role' and 'content', found {message!r:.80}")
    calls, content = message.get("tool_calls"), message.get("content")
    if calls is not None and not isinstance(calls, list):
        raise BadRow(field, f"expected a list of tool calls, found {calls!r:.80}")
    if isinstance(content, str) or (content is None and calls and message["role"] == "assistant"):
        return
    raise BadRow(field, f"a message needs the texts 'role' and 'content', found {message!r:.80}")


def _check_calls(response: Message, rendered: str, field: str) -> None:
    for call in response.get("tool_calls", ()):
        if call["function"]["name"] not in rendered:
            raise BadRow(field, f"the base's chat template leaves tool calls out, here of {call['function']['name']!r}")


def _without_white_space(prompt: str, whole: str, content: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The turn less the white space that the template puts behind a response where it ends that in its own way.

    A module would learn to say it before its end-of-sequence token. A server leaves special tokens out of an answer
    (`<|im_end|>` of a base that ends in `<|endoftext|>`), but not the line break behind them: the client's next request
    would have it in the answer, where the contexts of training have none.
    """
    response, eos, _ = whole[len(prompt) :].partition(tokenizer.eos_token)
    begin = response.rfind(content) if content else -1
    own = begin + len(content) if begin >= 0 else 0  # white space that the message itself ends in stays
    return whole[: len(prompt)] + response[: max(own, len(response.rstrip()))] + eos


def _check_end(response: str, field: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """At the end of a response its end-of-sequence token may stand already; elsewhere it would end there."""
    eos = tokenizer.eos_token
    _, found, after = response.partition(eos)
    if found and after.strip():
        raise BadRow(
            field,
            f"the response has {eos!r} in its text, with which the base ends an answer, so that {after.strip()!r:.80} "
            "would never be said; write it in another way",
        )


def _text_example(row: Row, tokenizer: PreTrainedTokenizerBase) -> Example:
    prompt, completion = row["prompt"], row.get("completion")
    if not prompt:
        raise BadRow("prompt", "the prompt is empty")
    if not isinstance(completion, str):
        raise BadRow("completion", f"expected text as in 'prompt', found {type(completion).__name__}")
    if not completion.strip():
        raise BadRow("completion", "the response is empty")
    _check_end(completion, "completion", tokenizer)
    # With the special tokens that the tokenizer adds, as /v1/completions does.
    before, whole = tokenizer([prompt, prompt + completion])["input_ids"]
    return _alone(before, whole, "completion", tokenizer)


def _together(turns: list[_Turn], tokenizer: PreTrainedTokenizerBase) -> Example | None:
    """All turns in the token ids of the last one, or None when one of them would not be what it is alone."""
    eos, eos_id, conversation = tokenizer.eos_token, tokenizer.eos_token_id, turns[-1].whole
    for prompt, whole in turns:
        response, end, _ = whole[len(prompt) :].partition(eos)
        # Up to the end of the response only: the last message of a conversation may end in another way than the others.
        if not (response and end and whole.startswith(prompt) and conversation.startswith(prompt + response + end)):
            return None
    # Tokenising every prompt from its start would take time with the square of the turns. A special token is always a
    # token of its own, so what comes before a prompt's last end-of-sequence token is tokenised as in the conversation
    # and only the rest is compared. For the last turn, whose prompt holds all the others, everything is.
    heads = [0 if number == len(turns) - 1 else turn.prompt.count(eos) for number, turn in enumerate(turns)]
    rests = [
        turn.prompt[turn.prompt.rfind(eos) :] if head else turn.prompt for turn, head in zip(turns, heads, strict=True)
    ]
    ids, *rest_ids = _encode(tokenizer, [conversation, *rests])
    ends = [place for place, token in enumerate(ids) if token == eos_id]
    if len(ends) != conversation.count(eos):
        return None
    spans: list[tuple[int, int]] = []
    for head, rest in zip(heads, rest_ids, strict=True):
        begin = ends[head - 1] if head else 0
        start = begin + len(rest)
        if ids[begin:start] != rest or start < (spans[-1][1] if spans else 1):
            return None
        spans.append((start, ids.index(eos_id, start) + 1))
    return Example(ids[: spans[-1][1]], spans)


def _alone(prompt_ids: list[int], whole: list[int], field: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    """One turn. Cuts `whole` behind the response's end-of-sequence token, or puts one there."""
    start, eos = len(prompt_ids), tokenizer.eos_token_id
    if start < 1:
        raise BadRow(field, "the prompt has no tokens")
    if whole[:start] != prompt_ids:
        raise BadRow(
            field,
            "prompt and response do not tokenise separately, so the server would see other prompt tokens than "
            "training; start the response with a space, or use a chat template that ends the prompt in a marker",
        )
    end = whole.index(eos, start) if eos in whole[start:] else len(whole)
    if end == start:
        raise BadRow(field, "the response is empty once the base's chat template has rendered it")
    return Example([*whole[:end], eos], [(start, end + 1)])


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    # The template writes the special tokens itself.
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids
