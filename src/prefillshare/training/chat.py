"""A chat as the server renders it: what vLLM makes of messages and tools before the base's chat template sees them.

A module must be trained on the very prompt tokens that it meets when it is served. vLLM (0.32) does not hand a
request's messages to the template as they are; this does to a row of data what vLLM does to a request.
tests/engine/test_chat.py compares the two.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefillshare.tools import read_tools

Message = dict[str, Any]
Tool = dict[str, Any]

_BILLING_HEADER = "x-anthropic-billing-header"  # a line before Claude Code's instructions, another in every request
_UNSET = (None, "auto")


def served_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with the fields that reach the template. Every message has a role, and text or no content.

    Raises:
        ValueError: tool calls that are not those of a chat request, or whose arguments are not a JSON object.
    """
    return [_served_message(message) for message in messages]


def served_tools(tools: object) -> list[Tool] | None:
    """The tools of a row, a list or its JSON text as in TRL, with the fields that reach the template.

    Raises:
        ValueError: they are not in the form of a chat request.
    """
    found = read_tools(tools)
    return found and [_served_tool(tool) for tool in found]


def served_template_kwargs(kwargs: object) -> dict[str, Any]:
    """The `chat_template_kwargs` of a row that reach the template.

    Raises:
        ValueError: they are not an object, or bring a chat template along.
    """
    if not kwargs:
        return {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"expected an object, found {type(kwargs).__name__}")
    if kwargs.get("chat_template") is not None:
        raise ValueError("the server refuses a 'chat_template': prompts are made by the base's own; leave it out")
    return {key: value for key, value in kwargs.items() if value not in _UNSET}


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    tools: list[Tool] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool,
) -> str:
    """The text of served messages.

    Raises:
        ValueError: the chat template refuses them, or there is none.
    """
    try:
        template = tokenizer.get_chat_template(tools=tools)
        text = tokenizer.apply_chat_template(
            _without_unknown_role(messages, template),
            tools=tools,  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **(template_kwargs or {}),
        )
    except Exception as error:  # a template is a program
        raise ValueError(f"the base's chat template refuses it: {error}") from None
    assert isinstance(text, str)
    return text


def prints_date(tokenizer: PreTrainedTokenizerBase, *, told: bool = False) -> str | None:
    """What there is to know where one of the base's chat templates prints the date of the day; None where none does.

    `told`: all rows say a `date_string`, which most such templates read.
    """
    found = tokenizer.chat_template or ""
    templates = [text for text in (found.values() if isinstance(found, dict) else [found]) if "strftime_now" in text]
    if not templates:
        return None
    way = "make data, modules and requests on one day, or have the template print a fixed date and train again"
    if all("date_string" in text for text in templates):
        if told:
            return None
        way = 'say the date in rows and requests alike: chat_template_kwargs: {"date_string": "26 Jul 2024"}'
    return f"the base's chat template prints today's date where it is not told one, so prompts differ by the day; {way}"


def _served_message(message: Mapping[str, Any]) -> Message:
    role, content = message["role"], message.get("content")
    served: Message = {"role": role, "content": "" if content is None else content}
    if role == "system" and served["content"].startswith(_BILLING_HEADER):
        served["content"] = served["content"].partition("\n")[2]
    if role == "assistant":
        if message.get("tool_calls"):
            served["tool_calls"] = [_served_call(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        if reasoning is not None:
            served["reasoning"] = served["reasoning_content"] = reasoning
    if role == "tool" and "tool_call_id" in message:
        served["tool_call_id"] = message["tool_call_id"]
    served |= {field: message[field] for field in ("name", "task") if isinstance(message.get(field), str)}
    if role == "developer":
        served["tools"] = message.get("tools")
    return served


def _served_call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"a tool call needs a 'function' with a 'name', found {call!r:.80}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the arguments of the call of {function['name']!r} are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the call of {function['name']!r} are not an object: {arguments!r:.80}")
    # In the order of fields that a parsed request has: some templates print the whole object.
    known = {"arguments": arguments, "name": function["name"]}
    served = {"function": known | {key: value for key, value in function.items() if key not in known}}
    return ({"id": call["id"]} if "id" in call else {}) | served | {"type": "function"}


def _served_tool(tool: Tool) -> Tool:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            'expected tools as in a chat request, {"type": "function", "function": {"name": ..., "parameters": ...}}, '
            f"found {tool!r:.80}"
        )
    served = {key: function.get(key) for key in ("name", "description", "parameters")}
    deferred = tool.get("defer_loading")
    own = function.get("defer_loading")
    more = {"strict": function.get("strict"), "defer_loading": deferred if own is None else own}
    served |= {key: value for key, value in more.items() if value is not None}
    return {"type": "function", "function": served} | ({} if deferred is None else {"defer_loading": deferred})


def _without_unknown_role(messages: list[Message], template: str) -> list[Message]:
    """Developer messages as system messages, all merged at the front, for a template that does not know the role."""
    known = '"developer"' in template or "'developer'" in template
    if known or not any(message["role"] == "developer" for message in messages):
        return messages
    system = [message for message in messages if message["role"] in ("developer", "system")]
    others = [message for message in messages if message["role"] not in ("developer", "system")]
    text = "\n\n".join(message["content"] for message in system if message["content"])
    return [{"role": "system", "content": text}, *others]
