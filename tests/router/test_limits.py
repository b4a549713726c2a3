import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.admission import admit
from prefillshare.router.errors import RouterError
from prefillshare.router.legs import prefill_body
from prefillshare.router.limits import MAX_CONTAINERS, MAX_STOP_TOKEN_IDS, check_body, check_headers
from prefillshare.router_config import LimitsConfig

LIMITS = LimitsConfig(max_headers=8, max_header_bytes=1024, max_depth=10, max_messages=3, max_tools=2)


def refusal(body: dict[str, Any]) -> RouterError:
    with pytest.raises(RouterError) as caught:
        check_body(body, LIMITS)
    return caught.value


def nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def test_headers_are_limited_in_number_and_size() -> None:
    check_headers([(b"a", b"b")] * 8, LIMITS)
    check_headers([(b"a", b"b" * 1023)], LIMITS)
    for headers in ([(b"a", b"b")] * 9, [(b"a", b"b" * 1024)], [(b"a" * 512, b"b" * 256)] * 2):
        with pytest.raises(RouterError) as caught:
            check_headers(headers, LIMITS)
        assert caught.value.status == 431


def test_a_field_may_be_nested_up_to_the_limit() -> None:
    check_body({"messages": nested(10)}, LIMITS)
    error = refusal({"model": "sql", "messages": nested(11)})
    assert (error.status, error.param) == (400, "messages")


@pytest.mark.parametrize(("field", "most"), [("messages", 3), ("tools", 2)])
def test_messages_and_tools_are_counted(field: str, most: int) -> None:
    check_body({field: [{}] * most}, LIMITS)
    error = refusal({field: [{}] * (most + 1)})
    assert (error.status, error.param) == (400, field)
    assert str(most) in error.message


def test_a_body_of_countless_lists_is_refused_and_one_of_many_token_ids_is_not() -> None:
    assert refusal({"documents": [[]] * MAX_CONTAINERS}).param == "documents"
    check_body({"prompt": [1] * (2 * MAX_CONTAINERS)}, LIMITS)


def schema(properties: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(properties)}}


@pytest.mark.parametrize(
    ("field", "wrapped"),
    [
        ("response_format", lambda found: {"type": "json_schema", "json_schema": {"name": "x", "schema": found}}),
        ("structured_outputs", lambda found: {"json": {"anyOf": [found]}}),
        ("structured_outputs", lambda found: {"json": json.dumps({"anyOf": [found]})}),
        ("tools", lambda found: [{"type": "function", "function": {"name": "f", "parameters": found}}]),
    ],
)
def test_an_object_has_no_more_properties_than_a_worker_compiles_at_once(field: str, wrapped: Any) -> None:
    limits = LimitsConfig(max_properties=20)
    check_body({field: wrapped(schema(20))}, limits)
    with pytest.raises(RouterError, match="object of 21 properties; at most 20") as caught:
        check_body({field: wrapped(schema(21))}, limits)
    assert (caught.value.status, caught.value.param) == (400, field)


def test_a_grammar_is_limited_in_size_and_tools_that_are_only_shown_are_not() -> None:
    limits = LimitsConfig(max_schema_bytes=256)
    many = [{"type": "function", "function": {"name": "f", "parameters": schema(3)}}] * 50
    check_body({"structured_outputs": {"regex": "a" * 200}, "tools": many, "response_format": None}, limits)
    check_body({"structured_outputs": {"regex": "\u4e2d" * 80}}, limits)  # three bytes each, as it was sent
    for field, value in (("structured_outputs", {"regex": "a" * 300}), ("response_format", schema(30))):
        with pytest.raises(RouterError, match=r"has \d+ bytes; at most 256") as caught:
            check_body({field: value}, limits)
        assert (caught.value.status, caught.value.param) == (400, field)


def test_a_worker_looks_through_no_more_tokens_to_stop_at_than_it_can_between_two_tokens() -> None:
    check_body({"stop_token_ids": [7] * MAX_STOP_TOKEN_IDS}, LIMITS)
    error = refusal({"stop_token_ids": [7] * (MAX_STOP_TOKEN_IDS + 1)})
    assert (error.status, error.param) == (400, "stop_token_ids")
    assert error.message == "`stop_token_ids` has 1025 entries; at most 1024 are accepted."


@pytest.mark.parametrize(
    ("size", "count", "says"),
    [
        (129, 2, "`max_pattern_size` 129 and `min_count` 2; their product may be 1024 at most"),
        (1, 1025, "`max_pattern_size` 1 and `min_count` 1025"),
        (33, 31, "`max_pattern_size` 33 and `min_count` 31"),
        (8000.0, 2.0, "`max_pattern_size` 8000.0 and"),  # a worker reads it as 8000
        (10**400, 2.5, "1024 at most"),
        ("8000", 2, "`repetition_detection.max_pattern_size` must be a number"),
        (8000, "2", "`repetition_detection.min_count` must be a number"),
    ],
)
def test_a_worker_looks_for_no_longer_repetitions_than_it_can_between_two_tokens(
    size: object, count: object, says: str
) -> None:
    error = refusal({"repetition_detection": {"max_pattern_size": size, "min_count": count}})
    assert (error.status, error.param) == (400, "repetition_detection")
    assert says in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "detection",
    [
        {"max_pattern_size": 128, "min_count": 2, "min_pattern_size": 1},
        {"max_pattern_size": 20, "min_count": 20},
        {"max_pattern_size": 1, "min_count": 1024},
        {"max_pattern_size": -(10**400), "min_count": 2.5},  # this and the rest a worker refuses, or does not use
        {"max_pattern_size": 8000},
        {"max_pattern_size": None, "min_count": [2]},
        {},
        None,
        "text",
    ],
)
def test_other_repetitions_are_left_to_the_worker(detection: object) -> None:
    check_body({"repetition_detection": detection, "stop_token_ids": None}, LIMITS)


def test_a_field_of_a_long_name_is_not_repeated_in_full() -> None:
    assert len(refusal({"x" * 10_000: nested(20)}).message) < 200


TEXT = st.text(st.sampled_from("ab{\x00\ud800\u00e9\U0001f600"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SHAPING = ("model", "messages", "prompt", "tools", "documents", "chat_template_kwargs", "continue_final_message")
OTHERS = ("stream", "stream_options", "user", "prompt_cache_key", "n", "echo", "cache_salt", "kv_transfer_params")
FIELDS = st.sampled_from((*SHAPING, *OTHERS, "\ud800"))
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls"]), st.sampled_from(["system", "user"]) | JSON
)


@given(
    st.dictionaries(FIELDS, JSON | st.lists(MESSAGE, max_size=3), max_size=8),
    st.sampled_from(["chat/completions", "completions"]),
    st.sampled_from(["in_place", "behind_context"]),
    st.booleans(),
)
def test_no_body_does_more_than_be_refused(body: Any, endpoint: Any, placement: Any, named: bool) -> None:
    body = body | {"model": "sql"} if named else body
    refused: RouterError | None = None
    try:
        call = admit(json.dumps(body).encode(), endpoint=endpoint, headers={}, known_models=("sql",), request_id="r")
        check_body(call.body, LIMITS)
        json.dumps(prefill_body(call, "base", placement), allow_nan=False)
    except RouterError as error:
        refused = error
    assert refused is None or refused.status in (400, 404)
    assert refused or "kv_transfer_params" not in body


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]":,1e-.model sqltrue\\u'), max_size=60).map(str.encode))
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    with pytest.raises(RouterError) as caught:
        admit(raw, endpoint="completions", headers={}, known_models=("sql",), request_id="r")
    assert caught.value.status in (400, 404)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "NaN"])
def test_a_number_that_is_none_is_not_json(number: str) -> None:
    with pytest.raises(RouterError, match="not valid JSON"):
        admit(
            f'{{"model": "sql", "temperature": {number}}}'.encode(),
            endpoint="completions",
            headers={},
            known_models=("sql",),
            request_id="r",
        )
