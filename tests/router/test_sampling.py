from typing import Any

import pytest

from prefillshare.router.call import Endpoint
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
    for value in (*EDGES[field][0], None, "-9", [-9], *[False] * (field != "max_tokens")):
        check_sampling(endpoint, {field: value})


def test_a_chats_length_is_what_its_worker_goes_by() -> None:
    assert refusal("chat/completions", {"max_completion_tokens": 0, "max_tokens": 5}).param == "max_completion_tokens"
    assert refusal("chat/completions", {"max_completion_tokens": None, "max_tokens": 0}).param == "max_tokens"
    check_sampling("chat/completions", {"max_completion_tokens": 5, "max_tokens": 0})


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def schema(**parts: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": parts}


NAMED, TOOLS = tool("f"), [tool("f")]
CHAT: Endpoint = "chat/completions"
TEXT: Endpoint = "completions"


@pytest.mark.parametrize(
    ("endpoint", "body", "field", "says"),
    [
        (CHAT, {"min_tokens": 6, "max_tokens": 5}, "min_tokens", "is 6; it must be at most `max_tokens`, which is 5"),
        (CHAT, {"min_tokens": 6, "max_completion_tokens": 5, "max_tokens": 9}, "min_tokens", "`max_completion_tokens`"),
        (TEXT, {"min_tokens": 17}, "min_tokens", "which is 16"),
        (TEXT, {"min_tokens": 17, "max_tokens": None}, "min_tokens", "which is 16"),
        (
            CHAT,
            {"max_tokens": " 0"},
            "max_tokens",
            "is ' 0'; it must be at least 1",
        ),  # which a worker reads as a number
        (CHAT, {"max_completion_tokens": "-0"}, "max_completion_tokens", "is '-0'"),
        (TEXT, {"max_tokens": False}, "max_tokens", "is False"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs", "is there without `logprobs`; it needs `logprobs: true`"),
        (CHAT, {"top_logprobs": -1, "logprobs": False}, "top_logprobs", "logprobs: true"),
        (CHAT, {"stop": ""}, "stop", "has an empty text"),
        (TEXT, {"stop": ["a", ""]}, "stop", "has an empty text"),
        (CHAT, {"bad_words": [""]}, "bad_words", "has an empty text"),
        (TEXT, {"allowed_token_ids": []}, "allowed_token_ids", "is empty"),
        (CHAT, {"stop": list("abcde")}, "stop", "has 5 texts; it must have at most 4"),
        (CHAT, {"tool_choice": "auto"}, "tool_choice", "has no `tools` to choose from; it must be left out then"),
        (CHAT, {"tool_choice": "required", "tools": []}, "tool_choice", "has no `tools`"),
        (CHAT, {"tool_choice": NAMED}, "tool_choice", "has no `tools`"),
        (CHAT, {"tool_choice": NAMED, "tools": [tool("g"), 7, {}]}, "tool_choice", "of one of `tools`"),
        (CHAT, {"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "tool_choice", "is {'type': 'allowed_"),
        (CHAT, {"tool_choice": "any", "tools": TOOLS}, "tool_choice", "is 'any'; it must be"),
        (TEXT, {"response_format": {"type": "json_schema"}}, "response_format", "has no `json_schema.name`"),
        (CHAT, {"response_format": schema(name="x")}, "response_format", "has no `json_schema.schema`; it must"),
        (CHAT, {"response_format": schema(name="x", schema=None)}, "response_format", "has no `json_schema.schema`"),
        (CHAT, {"response_format": schema(schema={})}, "response_format", "has no `json_schema.name`"),
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
        (CHAT, {"top_logprobs": 0}),
        (CHAT, {"stop": [], "bad_words": [], "stream_options": {}}),
        (CHAT, {"stop": None, "allowed_token_ids": None, "stream_options": None}),
        (TEXT, {"stream_options": {"include_usage": True}, "stream": True}),
        (TEXT, {"stop": list("abcd")}),
        (CHAT, {"stop": "abcde"}),
        (CHAT, {"tool_choice": None}),
        (CHAT, {"tool_choice": "none"}),
        (CHAT, {"tool_choice": "auto", "tools": TOOLS}),
        (CHAT, {"tool_choice": "required", "tools": TOOLS}),
        (CHAT, {"tool_choice": NAMED, "tools": [tool("g"), *TOOLS]}),
        (CHAT, {"tool_choice": NAMED, "tools": "no list, as a prefill worker says"}),
        (TEXT, {"tool_choice": "auto"}),
        (TEXT, {"response_format": schema(name="x", schema={})}),
        (CHAT, {"response_format": {"type": "text"}}),
        (CHAT, {"response_format": "json_schema"}),
    ],
)
def test_what_goes_together_is_let_through(endpoint: Endpoint, body: dict[str, Any]) -> None:
    check_sampling(endpoint, body)


def test_workers_may_be_told_to_take_more_stop_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", "5")
    check_sampling(CHAT, {"stop": list("abcde")})
    assert "at most 5" in refusal(CHAT, {"stop": list("abcdef")}).message
