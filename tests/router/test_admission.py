import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from prefillshare.router.admission import admit, read_body
from prefillshare.router.call import Call, Endpoint
from prefillshare.router.errors import RouterError
from prefillshare.router.flow.need import need_of
from prefillshare.router.legs import prefill_body
from prefillshare.router.placement.chunks import chain_of_request

CHAT: dict[str, Any] = {"model": "sql", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "sql", "prompt": "hi"}


def admit_raw(raw: bytes, endpoint: Endpoint = "chat/completions", headers: dict[str, str] | None = None) -> Call:
    return admit(raw, endpoint=endpoint, headers=headers or {}, known_models=("sql", "json"), request_id="r")


def admit_body(body: object, **kwargs: Any) -> Call:
    return admit_raw(json.dumps(body).encode(), **kwargs)


def refusal(body: object, **kwargs: Any) -> RouterError:
    with pytest.raises(RouterError) as caught:
        admit_body(body, **kwargs)
    return caught.value


def test_a_request_becomes_a_call() -> None:
    body = CHAT | {"stream": True, "user": "u", "temperature": 0.5, "max_tokens": 1, "n": 1}
    call = admit_body(body, headers={"x-session-id": "s"})
    assert call == Call("r", "chat/completions", "sql", body, True, ("x-session-id", "s"))


@pytest.mark.parametrize("value", [None, {}, "x", 0, False, {"do_remote_prefill": True, "remote_host": "10.0.0.1"}])
@pytest.mark.parametrize("field", ["kv_transfer_params", "ec_transfer_params"])
def test_transfer_parameters_are_refused_whatever_their_value(field: str, value: object) -> None:
    error = refusal(CHAT | {field: value})
    assert (error.status, error.param) == (400, field)
    assert field in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vllm_xargs", {"kv_transfer_params": "x"}),
        ("request_id", "mine"),
        ("data_parallel_rank", 1),
        ("priority", -1),
        ("cache_salt", "salt"),
        ("prompt_logprobs", 0),
        ("prompt_logprobs", 1),
        ("echo", True),
        ("echo", "yes"),
        ("best_of", 2),
        ("use_beam_search", True),
        ("truncate_prompt_tokens", 10),
        ("truncation_side", "left"),
        ("prompt_embeds", "AAAA"),
        ("suffix", "end"),
        ("chat_template", "{{ messages }}"),
        ("mm_processor_kwargs", {"a": 1}),
        ("media_io_kwargs", {"a": {}}),
        ("return_prompt_text", True),
        ("routed_experts_prompt_start", 3),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("modalities", ["text", "audio"]),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("guided_json", {"type": "object"}),
    ],
)
def test_fields_that_would_break_the_two_legs_are_refused_by_name(field: str, value: object) -> None:
    error = refusal(CHAT | {field: value})
    assert (error.status, error.param, error.code) == (400, field, "unsupported_parameter")
    assert f"`{field}`" in error.message


def test_a_completion_is_not_given_another_length_than_it_asks_for() -> None:
    """vLLM has `max_completion_tokens` for chats alone: the answer would be as long as `max_tokens` says, or 16."""
    error = refusal(TEXT | {"max_completion_tokens": 200}, endpoint="completions")
    assert (error.status, error.param, error.code) == (400, "max_completion_tokens", "unsupported_parameter")
    assert "`max_tokens`" in error.message
    admit_body(TEXT | {"max_completion_tokens": None, "max_tokens": 200}, endpoint="completions")
    admit_body(CHAT | {"max_completion_tokens": 200})


@pytest.mark.parametrize("value", [0, 1, 5, "true"])
def test_a_chat_is_not_given_fewer_log_probabilities_than_it_asks_for(value: object) -> None:
    """vLLM reads the number of a completion as true or false: 1 without alternatives, 0 as none at all."""
    error = refusal(CHAT | {"logprobs": value})
    assert (error.status, error.param) == (400, "logprobs")
    assert "`top_logprobs`" in error.message
    admit_body(TEXT | {"logprobs": value}, endpoint="completions")


@pytest.mark.parametrize("value", [None, False, True])
def test_a_chat_may_ask_for_log_probabilities(value: object) -> None:
    admit_body(CHAT | {"logprobs": value, "top_logprobs": 3 if value else 0})


def test_refused_fields_may_say_that_they_are_not_used() -> None:
    unused = {"n": 1, "best_of": None, "echo": False, "prompt_logprobs": None, "priority": 0, "suffix": None}
    admit_body(CHAT | unused | {"modalities": ["text"], "functions": [], "verbosity": "medium"})


def test_a_worker_is_not_sent_what_is_not_used() -> None:
    assert admit_body(TEXT | {"suffix": "", "echo": False}, endpoint="completions").body == TEXT


@pytest.mark.parametrize(
    ("endpoint", "body", "field", "value"),
    [
        ("chat/completions", CHAT, "prompt", None),
        ("chat/completions", CHAT, "prompt", ""),
        ("chat/completions", CHAT, "prompt", []),
        ("completions", TEXT, "messages", None),
        ("completions", TEXT, "messages", []),
    ],
)
def test_a_prompt_that_says_nothing_does_not_hide_the_one_that_is_read(
    endpoint: Endpoint, body: dict[str, Any], field: str, value: object
) -> None:
    long = json.loads(json.dumps(body).replace("hi", "word " * 8000))
    call = admit_body(long | {field: value}, endpoint=endpoint)
    assert need_of(endpoint, call.body, 512).prompt == pytest.approx(10_000, rel=0.01)
    assert chain_of_request(prefill_body(call, "base")).tokens == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "look", "image_url": "data:,"},
        {"type": "input_audio", "input_audio": {}},
        {"type": ["text"], "text": "hi"},
    ],
)
def test_messages_with_anything_but_text_are_refused(part: object) -> None:
    error = refusal(CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]})
    assert (error.status, error.param, error.code) == (400, "messages", "unsupported_parameter")


def test_messages_may_have_parts_of_text() -> None:
    parts = [{"type": "text", "text": "hi"}, {"text": "there"}, "you", {"type": "refusal", "refusal": "no"}]
    admit_body(CHAT | {"messages": [{"role": "user", "content": parts}]})


def test_a_chat_template_does_not_get_in_by_its_arguments() -> None:
    admit_body(CHAT | {"chat_template_kwargs": {"enable_thinking": False}})
    error = refusal(CHAT | {"chat_template_kwargs": {"chat_template": "{{ x }}"}})
    assert error.param == "chat_template_kwargs"


@pytest.mark.parametrize("value", [[], [{}], "x", 0, False])
def test_what_a_worker_would_fail_on_is_refused_before(value: object) -> None:
    assert refusal(CHAT | {"structured_outputs": value}).param == "structured_outputs"
    admit_body(CHAT | {"structured_outputs": {"regex": "a"}})
    admit_body(CHAT | {"structured_outputs": None})


def test_what_a_decode_worker_would_refuse_after_the_prefill_is_refused_before() -> None:
    error = refusal(CHAT | {"temperature": 3})
    assert (error.status, error.param, error.code) == (400, "temperature", "invalid_value")


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2, 3], [[1, 2, 3]]])
def test_one_prompt_may_have_any_form(prompt: object) -> None:
    admit_body(TEXT | {"prompt": prompt}, endpoint="completions")


@pytest.mark.parametrize("model", ["base", "SQL", ""])
def test_an_unknown_model_is_not_found(model: str) -> None:
    error = refusal(CHAT | {"model": model})
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert "json, sql" in error.message


@pytest.mark.parametrize("model", [None, 1, ["sql"], {"sql": 1}])
def test_a_model_that_is_no_name_is_a_bad_request(model: object) -> None:
    assert refusal(CHAT | {"model": model}).status == 400


@pytest.mark.parametrize("stream", ["yes", 1, 0, [], "true"])
def test_stream_is_a_boolean(stream: object) -> None:
    assert refusal(CHAT | {"stream": stream}).param == "stream"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff",
        b'{"model": "sql", "temperature": NaN}',
        b'{"model": "sql", "top_p": 1' + b"0" * 5000 + b"}",
        b'{"model": "sql", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        rb'{"model": "sql", "prompt": "\ud800"}',
        b'{"model": "sql", "prompt": "\xed\xa0\x80"}',
    ],
)
def test_what_is_no_json_object_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(RouterError) as caught:
        admit_raw(raw)
    assert caught.value.status == 400


def test_escaped_text_is_fine() -> None:
    raw = rb'{"model": "sql", "prompt": "\ud83d\ude00 \u00e9"}'
    assert admit_raw(raw, endpoint="completions").body["prompt"] == "😀 é"


def request_of(chunks: list[bytes], headers: dict[str, str]) -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def source() -> AsyncIterator[dict[str, Any]]:
        for message in messages:
            yield message

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw}, source().__anext__)


async def test_a_body_is_read_up_to_the_limit() -> None:
    assert await read_body(request_of([b"12345", b"67890"], {}), max_bytes=10) == b"1234567890"


@pytest.mark.parametrize("headers", [{}, {"content-length": "11"}, {"content-length": "5"}])
async def test_a_longer_body_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(RouterError) as caught:
        await read_body(request_of([b"12345", b"67890", b"1"], headers), max_bytes=10)
    assert caught.value.status == 413


def test_a_call_knows_how_long_its_client_waits() -> None:
    assert admit_body(CHAT).patience_s is None
    assert admit_body(CHAT, headers={"x-request-timeout-s": "2"}).patience_s == 2.0
    with pytest.raises(RouterError):
        admit_body(CHAT, headers={"x-request-timeout-s": "soon"})
