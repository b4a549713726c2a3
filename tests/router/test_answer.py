import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.answer import Usage, rewrite_answer, rewrite_stream
from prefillshare.router.errors import RouterError

TEXT = b'data: {"id":"x", "choices":[{"delta":{"content":"a \\"usage\\":{ b\\n\\n"}}]}\n\n'
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"message": "KV load failed", "type": "InternalServerError", "code": 500}}\n\n'
ABORT = b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n'


async def run(*chunks: bytes) -> tuple[bytes, RouterError | None]:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    out = b""
    try:
        async for ready in rewrite_stream(source(), 5, "sql-0"):
            out += ready
    except RouterError as error:
        return out, error
    return out, None


async def test_events_pass_byte_for_byte() -> None:
    assert await run(TEXT, b": ping\n\n", TEXT, DONE) == (TEXT + b": ping\n\n" + TEXT + DONE, None)


async def test_only_the_usage_event_is_rewritten() -> None:
    out, error = await run(TEXT + USAGE + DONE)
    assert error is None
    assert out == TEXT + USAGE.replace(b'"cached_tokens":8', b'"cached_tokens":5') + DONE


@given(st.lists(st.integers(0, len(TEXT + USAGE + DONE)), max_size=8))
async def test_it_does_not_matter_where_the_network_cuts(cuts: list[int]) -> None:
    stream = TEXT + USAGE + DONE
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    assert await run(*chunks) == (TEXT + USAGE.replace(b":8}", b":5}") + DONE, None)


async def test_internal_fields_are_removed_from_events() -> None:
    out, _ = await run(b'data: {"id":"x","kv_transfer_params":{"remote_host":"h"},"choices":[]}\n\n' + DONE)
    assert out == b'data: {"id":"x","choices":[]}\n\n' + DONE


@pytest.mark.parametrize("chunks", [(TEXT,), (TEXT, b'data: {"half'), (TEXT, b"data: [DONE]")])
async def test_a_stream_that_ends_without_done_is_an_error_and_shows_no_torn_event(chunks: tuple[bytes, ...]) -> None:
    out, error = await run(*chunks)
    assert out == TEXT
    assert error is not None
    assert error.status == 502
    assert "sql-0" in error.message


@pytest.mark.parametrize("failure", [ERROR, ABORT])
async def test_a_failure_in_the_stream_ends_it_and_its_done_is_not_passed_on(failure: bytes) -> None:
    for chunks in ((TEXT + failure + DONE,), (TEXT, failure, DONE)):
        out, error = await run(*chunks)
        assert out == TEXT
        assert error is not None
        assert error.status == 502


OPENING = b'data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
LOST = b'data: {"error": {"message": "no room", "type": "handoff_refused", "param": null, "code": "preempted"}}\n\n'


async def yields(*chunks: bytes) -> list[bytes]:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [ready async for ready in rewrite_stream(source(), 5, "sql-0")]


async def test_a_chat_opens_with_its_first_words() -> None:
    assert await yields(OPENING, TEXT, TEXT + DONE) == [OPENING + TEXT, TEXT + DONE]


async def test_a_chat_that_loses_its_kv_at_once_shows_nothing_of_it() -> None:
    for chunks in ((OPENING, LOST, DONE), (OPENING + LOST + DONE,)):
        out, error = await run(*chunks)
        assert out == b""
        assert error is not None
        assert (error.status, error.code) == (503, "kv_lost")


async def test_a_chat_that_is_nothing_but_its_opening_shows_it_if_it_ends_well() -> None:
    assert await yields(OPENING, DONE) == [OPENING + DONE]
    out, error = await run(OPENING)
    assert out == b""
    assert error is not None
    assert (error.status, error.code) == (502, "worker_failed")


def rewritten(answer: object) -> dict[str, Any]:
    found = json.loads(rewrite_answer(json.dumps(answer).encode(), 5, "sql-0"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": 8}, {"cached_tokens": 8, "created_cache_tokens": 1}])
def test_usage_reports_the_prefill_sides_cached_tokens(details: object) -> None:
    usage = {"prompt_tokens": 9, "prompt_tokens_details": details}
    assert rewritten({"usage": usage})["usage"] == {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}}


async def test_a_streams_usage_does_not_tell_of_a_decode_workers_cache() -> None:
    out, _ = await run(USAGE.replace(b'"cached_tokens":8', b'"cached_tokens":8,"created_cache_tokens":1') + DONE)
    assert out == USAGE.replace(b'"cached_tokens":8', b'"cached_tokens":5') + DONE


def test_internal_fields_are_removed() -> None:
    answer = {"choices": [{"finish_reason": "stop"}], "prompt_token_ids": [1]}
    internal = {"kv_transfer_params": {"remote_host": "h"}, "ec_transfer_params": None}
    assert rewritten(answer | internal) == answer


def test_an_aborted_answer_is_an_error() -> None:
    with pytest.raises(RouterError, match="before the answer was complete") as caught:
        rewritten({"choices": [{"finish_reason": "abort"}]})
    assert caught.value.status == 502


@pytest.mark.parametrize("raw", [b"", b"oops", b"[]"])
def test_an_answer_that_is_no_json_object_is_an_error(raw: bytes) -> None:
    with pytest.raises(RouterError) as caught:
        rewrite_answer(raw, 5, "sql-0")
    assert caught.value.status == 502


def test_a_whole_answer_tells_its_output_tokens() -> None:
    usage = Usage()
    rewrite_answer(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}', 2, "sql-0", usage)
    assert usage.output_tokens == 7
    rewrite_answer(b'{"choices":[],"usage":{"completion_tokens":null}}', 2, "sql-0", empty := Usage())
    assert empty.output_tokens is None


@pytest.mark.parametrize("shown", [True, False])
async def test_a_stream_tells_its_output_tokens_and_shows_them_only_if_it_should(shown: bool) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield TEXT
        yield USAGE.replace(b'"prompt_tokens"', b'"completion_tokens":4,"prompt_tokens"', 1)
        yield DONE

    usage = Usage(shown=shown)
    out = b"".join([ready async for ready in rewrite_stream(source(), 5, "sql-0", usage)])
    assert usage.output_tokens == 4
    assert (b'"usage":{' in out) is shown
    assert out.startswith(TEXT)
    assert out.endswith(DONE)


NAMES = st.sampled_from(
    ["choices", "usage", "error", "code", "delta", "finish_reason", "kv_transfer_params", "completion_tokens"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
EVENT = st.one_of(
    st.sampled_from([TEXT, USAGE, ERROR, ABORT, OPENING, LOST, b": ping\n\n", b"data: {\n\n", b'data: {"error": \n\n']),
    JSON.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
    JSON.map(lambda value: b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"),
    JSON.map(lambda value: b'data: {"error": ' + json.dumps(value).encode() + b"}\n\n"),
    st.binary(max_size=20),
)


@given(st.lists(EVENT, max_size=6))
async def test_a_worker_may_stream_anything_and_the_client_gets_events_or_an_error(events: list[bytes]) -> None:
    """Whatever a worker sends: an error of the router's own would be a 500 that says nothing."""
    _, error = await run(*events, DONE)
    assert error is None or error.status in (400, 413, 422, 502, 503)


@given(JSON | st.fixed_dictionaries({"choices": JSON, "usage": JSON}))
def test_a_worker_may_answer_anything_and_the_client_gets_an_object_or_an_error(answer: object) -> None:
    try:
        raw, status = rewrite_answer(json.dumps(answer).encode(), 5, "sql-0"), 200
    except RouterError as error:
        raw, status = b"{}", error.status
    assert status in (200, 502)
    assert not json.loads(raw).keys() & {"kv_transfer_params", "ec_transfer_params"}
