"""What is refused of how an answer is to be sampled: what vLLM 0.32 refuses.

A decode worker would say so only after leg 1, when the prompt has been computed in vain, and its KV then stays on the
prefill worker until the lease ends. Values of other types are left to the worker, which reads some of them as numbers.
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
}


def check_sampling(endpoint: "Endpoint", body: Mapping[str, Any]) -> None:
    """Raises RouterError (400), naming the field, when a number is out of its range."""
    for field, allowed in (*RANGES.items(), (length_field(endpoint, body), _LENGTH)):
        value = body.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool) and not allowed.holds(value):
            raise out_of_range(field, f"is {value!r:.20}", f"must be {allowed.text}")


def length_field(endpoint: "Endpoint", body: Mapping[str, Any]) -> str:
    """The one that bounds the answer, if any does. vLLM's completions have no `max_completion_tokens`."""
    first = "max_completion_tokens"
    return first if endpoint == "chat/completions" and body.get(first) is not None else "max_tokens"


def out_of_range(field: str, what: str, allowed: str) -> RouterError:
    return bad_request(f"`{field}` {what}; it {allowed}.", field, "invalid_value")
