"""What is refused of how an answer is to be sampled: what vLLM 0.32 refuses, as far as that can be known here.

A decode worker would say so only after leg 1, when the prompt has been computed in vain, and its KV then stays on the
prefill worker until the lease ends. Left to the worker are values of other types, which it may read as numbers, and
what its options, its vocabulary or a grammar decide.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prefillshare.router.errors import RouterError, bad_request

if TYPE_CHECKING:
    from prefillshare.router.admission import Endpoint  # which asks here


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
_MOST_IDS = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS


def check_sampling(endpoint: "Endpoint", body: Mapping[str, Any]) -> None:
    """Raises RouterError (400), naming the field, when a value is out of its range or does not go with another."""
    length = length_field(endpoint, body)
    for field, allowed in (*RANGES.items(), (length, _LENGTH)):
        value = _number(body.get(field))
        if value is not None and not allowed.holds(value):
            raise out_of_range(field, f"is {value!r:.20}", f"must be {allowed.text}")
    _check_least_length(endpoint, body, length)
    _check_log_probabilities(endpoint, body)
    for field in ("stop", "bad_words"):
        texts = body.get(field)
        if (field == "stop" and texts == "") or (isinstance(texts, list) and "" in texts):
            raise out_of_range(field, "has an empty text", "must have none")
    if body.get("allowed_token_ids") == []:
        raise out_of_range("allowed_token_ids", "is empty", "must have a token, or be left out")
    if body.get("stream_options") and not body.get("stream"):
        raise out_of_range("stream_options", "is there without `stream: true`", "must be left out then")


def _check_least_length(endpoint: "Endpoint", body: Mapping[str, Any], field: str) -> None:
    least, most = _number(body.get("min_tokens")), body.get(field)
    if most is None and endpoint == "completions":
        most = COMPLETION_TOKENS
    most = _number(most)
    if least is not None and most is not None and least > most:
        raise out_of_range("min_tokens", f"is {least!r:.20}", f"must be at most `{field}`, which is {most!r:.20}")


def _check_log_probabilities(endpoint: "Endpoint", body: Mapping[str, Any]) -> None:
    ids, logprobs = body.get("logprob_token_ids"), body.get("logprobs")
    if endpoint == "chat/completions":
        wanted = {"top_logprobs": _number(body.get("top_logprobs")), "logprob_token_ids": ids}
        there, needed = bool(logprobs), "true"
    else:
        wanted, there, needed = {"logprob_token_ids": ids}, logprobs is not None, "0"
    for field, value in wanted.items():
        if value and not there:
            raise out_of_range(field, "is there without `logprobs`", f"needs `logprobs: {needed}`")
    if isinstance(ids, list) and len(ids) > _MOST_IDS:
        raise out_of_range("logprob_token_ids", f"has {len(ids)} tokens", f"must have at most {_MOST_IDS}")


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def length_field(endpoint: "Endpoint", body: Mapping[str, Any]) -> str:
    """The one that bounds the answer, if any does. vLLM's completions have no `max_completion_tokens`."""
    first = "max_completion_tokens"
    return first if endpoint == "chat/completions" and body.get(first) is not None else "max_tokens"


def out_of_range(field: str, what: str, allowed: str) -> RouterError:
    return bad_request(f"`{field}` {what}; it {allowed}.", field, "invalid_value")
