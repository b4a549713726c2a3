from typing import Any

import pytest

from prefillshare.router.admission import Endpoint
from prefillshare.router.errors import RouterError
from prefillshare.router.sampling import RANGES, check_sampling

# Of each field, what vLLM 0.32 takes just so, and what it just so refuses (`SamplingParams._verify_args`).
EDGES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "temperature": ((0, 2, 2.0), (-0.01, 2.01, 10**400)),
    "top_p": ((0.01, 1), (0, 1.01, -1)),
    "top_k": ((-1, 0, 10**6), (-2,)),
    "min_p": ((0, 1), (-0.01, 1.01)),
    "frequency_penalty": ((-2, 2), (-2.01, 2.01)),
    "presence_penalty": ((-2, 2), (-2.01, 2.01)),
    "repetition_penalty": ((0.01, 5), (0, -1)),
    "min_tokens": ((0, 5), (-1,)),
    "stream_interval": ((1, 100), (0, -1)),
    "thinking_token_budget": ((-1, 0, 10**6), (-2,)),
    "top_logprobs": ((0,), (-2,)),
    "logprobs": ((-1, 0, 5), (-2,)),
    "seed": ((-(2**63), 2**63 - 1), (-(2**63) - 1, 2**63)),
    "max_tokens": ((1,), (0, -1, -(10**400))),
}
REFUSED = [(field, value) for field, (_, refused) in EDGES.items() for value in refused]
ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions")


def refusal(endpoint: Endpoint, body: dict[str, Any]) -> RouterError:
    with pytest.raises(RouterError) as caught:
        check_sampling(endpoint, body)
    return caught.value


def test_every_range_has_its_edges() -> None:
    assert EDGES.keys() == RANGES.keys() | {"max_tokens"}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_number_that_a_worker_would_refuse_is_refused_by_its_name(
    endpoint: Endpoint, field: str, value: float
) -> None:
    error = refusal(endpoint, {field: value})
    assert (error.status, error.param, error.code) == (400, field, "invalid_value")
    assert error.message.startswith(f"`{field}` is {value!r:.20}; it must be ")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("field", EDGES)
def test_all_else_is_left_to_the_worker(endpoint: Endpoint, field: str) -> None:
    for value in (*EDGES[field][0], None, "-9", False, [-9]):
        check_sampling(endpoint, {field: value})


def test_a_chats_length_is_what_its_worker_goes_by() -> None:
    assert refusal("chat/completions", {"max_completion_tokens": 0, "max_tokens": 5}).param == "max_completion_tokens"
    assert refusal("chat/completions", {"max_completion_tokens": None, "max_tokens": 0}).param == "max_tokens"
    check_sampling("chat/completions", {"max_completion_tokens": 5, "max_tokens": 0})


CHAT: Endpoint = "chat/completions"
TEXT: Endpoint = "completions"


@pytest.mark.parametrize(
    ("endpoint", "body", "field", "says"),
    [
        (CHAT, {"min_tokens": 6, "max_tokens": 5}, "min_tokens", "is 6; it must be at most `max_tokens`, which is 5"),
        (CHAT, {"min_tokens": 6, "max_completion_tokens": 5, "max_tokens": 9}, "min_tokens", "`max_completion_tokens`"),
        (TEXT, {"min_tokens": 17}, "min_tokens", "which is 16"),
        (TEXT, {"min_tokens": 17, "max_tokens": None}, "min_tokens", "which is 16"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs", "is there without `logprobs`; it needs `logprobs: true`"),
        (CHAT, {"top_logprobs": -1, "logprobs": False}, "top_logprobs", "logprobs: true"),
        (CHAT, {"logprob_token_ids": [1]}, "logprob_token_ids", "logprobs: true"),
        (TEXT, {"logprob_token_ids": [1]}, "logprob_token_ids", "logprobs: 0"),
        (TEXT, {"logprob_token_ids": [1] * 129, "logprobs": 0}, "logprob_token_ids", "has 129 tokens"),
        (CHAT, {"stop": ""}, "stop", "has an empty text"),
        (TEXT, {"stop": ["a", ""]}, "stop", "has an empty text"),
        (CHAT, {"bad_words": [""]}, "bad_words", "has an empty text"),
        (TEXT, {"allowed_token_ids": []}, "allowed_token_ids", "is empty"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "without `stream: true`"),
        (TEXT, {"stream_options": {"include_usage": True}, "stream": False}, "stream_options", "must be left out"),
    ],
)
def test_what_does_not_go_together_or_says_nothing_is_refused(
    endpoint: Endpoint, body: dict[str, Any], field: str, says: str
) -> None:
    error = refusal(endpoint, body)
    assert (error.status, error.param, error.code) == (400, field, "invalid_value")
    assert says in error.message


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"min_tokens": 17}),
        (CHAT, {"min_tokens": 5, "max_tokens": 5}),
        (TEXT, {"min_tokens": 16}),
        (TEXT, {"min_tokens": 17, "max_tokens": 20}),
        (CHAT, {"top_logprobs": 21, "logprobs": True}),  # `--max-logprobs` of the worker
        (CHAT, {"top_logprobs": 0, "logprob_token_ids": []}),
        (TEXT, {"logprob_token_ids": [1] * 128, "logprobs": 0}),
        (CHAT, {"stop": [], "bad_words": [], "stream_options": {}}),
        (CHAT, {"stop": None, "allowed_token_ids": None, "stream_options": None}),
        (TEXT, {"stream_options": {"include_usage": True}, "stream": True}),
    ],
)
def test_what_goes_together_is_let_through(endpoint: Endpoint, body: dict[str, Any]) -> None:
    check_sampling(endpoint, body)
