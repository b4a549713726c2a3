"""What is refused of how an answer is to be made: what vLLM 0.32 refuses, as far as that can be known here.

A decode worker would say so only after leg 1, when the prompt has been computed in vain, and its KV then stays on the
prefill worker until the lease ends. Left to the worker are values of other types, which it may read as numbers, and
what its options, its vocabulary or a grammar decide.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prefillshare.router.call import Endpoint
from prefillshare.router.errors import RouterError, bad_request


class Range(NamedTuple):
    text: str
    holds: Callable[[float], bool]


_LENGTH = Range("at least 1", lambda value: value >= 1)
_SHARE = Range("from 0 to 1", lambda value: 0 <= value <= 1)
_ALTERNATIVES = Range("at least 0, or -1 for all", lambda value: value >= 0 or value == -1)
_PENALTY = Range("from -2 to 2", lambda value: -2 <= value <= 2)

RANGES = {
    "temperature": Range("from 0 to 2", lambda value: 0 <= value <= 2),
    "top_p": Range("above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": Range("at least 1, or 0 or -1 for all", lambda value: value >= -1),
    "min_p": _SHARE,
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "repetition_penalty": Range("above 0", lambda value: value > 0),
    "min_tokens": Range("at least 0", lambda value: value >= 0),
    "stream_interval": _LENGTH,
    "thinking_token_budget": Range("at least 0, or -1 for any", lambda value: value >= -1),
    "top_logprobs": _ALTERNATIVES,
    "logprobs": _ALTERNATIVES,  # of completions
    "seed": Range("from -2**63 to 2**63 - 1", lambda value: -(2**63) <= value < 2**63),
}
COMPLETION_TOKENS = 16  # of a completion that says nothing else, or null, as at OpenAI


def check_sampling(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    """Raises RouterError (400), naming the field, when a value is out of its range or does not go with another."""
    length = length_field(endpoint, body)
    for field, allowed in (*RANGES.items(), (length, _LENGTH)):
        value = _number(body.get(field))
        if value is not None and not allowed.holds(value):
            raise out_of_range(field, f"is {value!r:.20}", f"must be {allowed.text}")
    if _reads_as_zero(body.get(length)):
        raise out_of_range(length, f"is {body[length]!r:.20}", f"must be {_LENGTH.text}")
    _check_least_length(endpoint, body, length)
    _check_log_probabilities(endpoint, body)
    for field in ("stop", "bad_words"):
        texts = body.get(field)
        if (field == "stop" and texts == "") or (isinstance(texts, list) and "" in texts):
            raise out_of_range(field, "has an empty text", "must have none")
    if body.get("allowed_token_ids") == []:
        raise out_of_range("allowed_token_ids", "is empty", "must have a token, or be left out")
    _check_stops(body.get("stop"))
    if body.get("stream_options") and not body.get("stream"):
        raise out_of_range("stream_options", "is there without `stream: true`", "must be left out then")
    if endpoint == "chat/completions":
        _check_tool_choice(body.get("tool_choice"), body.get("tools"))
    _check_schema(body.get("response_format"))


def _check_least_length(endpoint: Endpoint, body: Mapping[str, Any], field: str) -> None:
    least, most = _number(body.get("min_tokens")), body.get(field)
    if most is None and endpoint == "completions":
        most = COMPLETION_TOKENS
    most = _number(most)
    if least is not None and most is not None and least > most:
        raise out_of_range("min_tokens", f"is {least!r:.20}", f"must be at most `{field}`, which is {most!r:.20}")


def _check_log_probabilities(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    if endpoint == "chat/completions" and _number(body.get("top_logprobs")) and not body.get("logprobs"):
        raise out_of_range("top_logprobs", "is there without `logprobs`", "needs `logprobs: true`")


def _check_stops(stops: object) -> None:
    """vLLM reads how many it takes from the environment, and workers that `serve` starts have the router's."""
    most = int(os.environ.get("VLLM_MAX_STOP_STRINGS", "4"))
    if isinstance(stops, list) and len(stops) > most:
        raise out_of_range("stop", f"has {len(stops)} texts", f"must have at most {most}")


def _check_tool_choice(choice: object, tools: object) -> None:
    """Of a chat. What is wrong with `tools` a prefill worker says."""
    if choice in (None, "none"):
        return
    if not tools:
        raise out_of_range(
            "tool_choice", "has no `tools` to choose from", "must be left out then, as an empty list must"
        )
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice not in ("auto", "required") and isinstance(tools, list) and name not in map(_name_of, tools):
        raise out_of_range(
            "tool_choice",
            f"is {choice!r:.80}",
            'must be "none", "auto", "required" or `{"type": "function", "function": {"name": ...}}` of one of `tools`',
        )


def _name_of(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _check_schema(form: object) -> None:
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return
    given = form.get("json_schema")
    for part in ("name", "schema"):
        if not isinstance(given, dict) or given.get(part) is None:
            what = f"is of the type json_schema and has no `json_schema.{part}`"
            raise out_of_range("response_format", what, "must have one")


def _reads_as_zero(value: object) -> bool:
    """To a worker, whose refusal would look like that of a prompt that fills the context."""
    return value is False or (isinstance(value, str) and value.strip().strip("+-0") == "" != value.strip())


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def length_field(endpoint: Endpoint, body: Mapping[str, Any]) -> str:
    """The one that bounds the answer, if any does. vLLM's completions have no `max_completion_tokens`."""
    first = "max_completion_tokens"
    return first if endpoint == "chat/completions" and body.get(first) is not None else "max_tokens"


def out_of_range(field: str, what: str, allowed: str) -> RouterError:
    return bad_request(f"`{field}` {what}; it {allowed}.", field, "invalid_value")
