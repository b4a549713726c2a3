"""Hostile request bodies: in order but for a few fields, with forged transfer parameters, spoiled bytes, or large."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from experiments.hostile.wire import Piece

Body = dict[str, Any]

# What requests of vLLM 0.32 and of OpenAI may hold, and what its workers hold beside it.
FIELDS = (
    *("messages", "prompt", "model", "max_tokens", "max_completion_tokens", "n", "best_of", "stream", "stream_options"),
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("length_penalty", "logit_bias", "logprobs", "top_logprobs", "prompt_logprobs", "seed", "stop", "stop_token_ids"),
    *("include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens"),
    *("truncate_prompt_tokens", "truncation_side", "allowed_token_ids", "logprob_token_ids", "bad_words", "echo"),
    *("add_generation_prompt", "continue_final_message", "add_special_tokens", "documents", "chat_template"),
    *("chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs", "structured_outputs", "response_format"),
    *("tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "thinking_token_budget", "include_reasoning"),
    *("priority", "request_id", "session_id", "return_token_ids", "return_tokens_as_token_ids", "return_prompt_text"),
    *("return_token_offsets", "routed_experts_prompt_start", "mm_payload", "return_mm_kwargs", "cache_salt", "suffix"),
    *("vllm_xargs", "repetition_detection", "stream_interval", "watermarking", "use_beam_search", "prompt_embeds"),
    *(
        "user",
        "prompt_cache_key",
        "metadata",
        "store",
        "service_tier",
        "modalities",
        "audio",
        "prediction",
        "functions",
    ),
    *("function_call", "extra_body", "extra_args", "logits_processors", "guided_json", "guided_regex"),
    *("data_parallel_rank", "kv_transfer_params", "ec_transfer_params", "_grammar_from_parser", "__proto__", ""),
)

_WORDS = ("the", "ferry", "leaves", "at", "nine", "and", "a", "baker", "rows", "over", "before", "it", "is", "dark")
_ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        17,
        49151,
        49152,
        2**31,
        2**32,
        2**63,
        -(2**63),
        10**30,
        0.5,
        -0.5,
        1e308,
        1e-320,
    ),
    *(
        "",
        " ",
        "\x00",
        "null",
        "true",
        "auto",
        "none",
        "required",
        "NaN",
        "{{ 7 * 7 }}",
        "../../etc/passwd",
        "a" * 5000,
    ),
    *("\U0001f600\u202e\ufeff", "<|im_start|>system\n", "<|im_end|>", "%s%n", "'; --", "\r\nx: y", "\\"),
    *([], {}, [[]], [{}], [None], [0], [-1], [2**40], ["a", "b"], [["a"]], {"a": {"b": {"c": []}}}, {"": ""}),
    *({"type": "json_object"}, {"type": "text"}, {"type": "json_schema"}, {"type": "nothing"}, {"type": None}),
    *({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}},),
    *({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}},),
    *({"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(((("}}},),
    *({"regex": "(((("}, {"regex": "(a+)+$"}, {"regex": "a{1,99999}"}, {"regex": ""}, {"choice": []}, {"choice": [""]}),
    *({"grammar": "root ::= root"}, {"grammar": "::::"}, {"json": "{"}, {"json": {"type": "object"}}, {"json": []}),
    *({"structural_tag": "{}"}, {"json_object": True}, {"regex": "a", "choice": ["a"]}, {"include_usage": "yes"}),
    *({"include_usage": True, "continuous_usage_stats": True}, {"0": 100}, {"-1": 5}, {"99999999": 1}, {"x": 1}),
    *({"49151": -1e30}, {"1": "a"}, {"type": "function", "function": {"name": "nothing"}}),
    *([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],),
    *([{"type": "function"}], [{"type": "function", "function": {"name": "\n" * 99, "parameters": []}}]),
    *({"chat_template": "{% for i in range(10 ** 9) %}x{% endfor %}"}, {"messages": "mine"}, {"enable_thinking": []}),
    *({"max_pattern_size": 2**40, "min_pattern_size": -1, "min_count": 0},),
]
_ROLES = ["user", "assistant", "system", "tool", "developer", "function", "", "USER", "<|im_start|>", None, 7]
_CONTENTS: list[Any] = [
    *(
        "hi",
        "",
        None,
        7,
        [],
        {},
        ["hi"],
        [{"type": "text"}],
        [{"type": "text", "text": "hi"}],
        [{"type": "text", "text": 3}],
    ),
    *([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], [{"type": "refusal", "refusal": "no"}]),
    *([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}], [{"type": "nothing"}], [[[]]]),
    *(
        [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
        [{"type": "video_url", "video_url": 1}],
    ),
]
_CALLS: list[Any] = [
    *(None, [], {}, [{}], [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{not json"}}]),
    *([{"type": "function", "function": {"name": "f", "arguments": "[1]"}}], [{"function": None}], "call me"),
]


def encoded(body: object) -> bytes:
    return json.dumps(body).encode()


def chat(model: str, mark: str) -> st.SearchStrategy[Body]:
    """A chat of a few words; the answer is short."""
    return st.builds(
        lambda words, most: _limited({"model": model, "messages": [{"role": "user", "content": words}]}, most),
        _texts(mark),
        st.integers(1, 4),
    )


def text(model: str, mark: str) -> st.SearchStrategy[Body]:
    ids = st.lists(st.integers(17, 49151), min_size=1, max_size=40)
    return st.builds(
        lambda prompt, most: _limited({"model": model, "prompt": prompt}, most), _texts(mark) | ids, st.integers(1, 4)
    )


def _limited(body: Body, most: int) -> Body:
    return body | {"max_tokens": most, "temperature": 0}


def _texts(mark: str) -> st.SearchStrategy[str]:
    words = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=40)
    return words.map(lambda words: f"{mark} {' '.join(words)}")


def anything() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
    return st.sampled_from(_ODD) | st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )


def changes() -> st.SearchStrategy[Body]:
    """Fields to overwrite, one of them at times with messages that are almost some."""
    odd = st.dictionaries(st.sampled_from(FIELDS), anything(), min_size=1, max_size=4)
    return st.one_of(odd, odd, odd, messages().map(lambda found: {"messages": found}))


def messages() -> st.SearchStrategy[list[Any]]:
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(_ROLES)},
        optional={
            "content": st.sampled_from(_CONTENTS),
            "tool_calls": st.sampled_from(_CALLS),
            "tool_call_id": st.sampled_from(["1", 1, None]),
            "name": st.sampled_from(["x", "\x00", 1]),
            "reasoning_content": st.sampled_from(["x", {}, None]),
        },
    )
    return st.lists(message | st.sampled_from([None, "hi", [], {}, 1]), max_size=4)


def forgeries(side_channel_port: int) -> st.SearchStrategy[Callable[[Body], Body | bytes]]:
    """What puts transfer parameters into a body. Those that look right point at the prefill worker's side channel."""
    right = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": "engine",
        "remote_request_id": "cmpl-1",
        "remote_block_ids": [[0, 1, 2, 3]],
        "remote_host": "127.0.0.1",
        "remote_port": side_channel_port,
        "tp_size": 1,
        "prompt_token_ids": [1, 2, 3],
    }
    part = st.fixed_dictionaries({}, optional={name: st.just(value) | anything() for name, value in right.items()})
    params = st.just(right) | part | anything()
    return st.builds(_forgery, st.sampled_from(_PLACES), params)


_PLACES: tuple[Callable[[Body, Any], Body | bytes], ...] = (
    lambda body, params: body | {"kv_transfer_params": params},
    lambda body, params: body | {"ec_transfer_params": params},
    lambda body, params: body | {"vllm_xargs": {"kv_transfer_params": params}},
    lambda body, params: body | {"vllm_xargs": {"kv_transfer_params": json.dumps(params)}},
    lambda body, params: (
        body | {"extra_args": {"kv_transfer_params": params}, "extra_body": {"kv_transfer_params": params}}
    ),
    lambda body, params: (
        body | {"KV_TRANSFER_PARAMS": params, "kv_transfer_params ": params, "kvTransferParams": params}
    ),
    lambda body, params: body | {"stream": True, "stream_options": {"kv_transfer_params": params}},
    lambda body, params: body | {"messages": [{"role": "user", "content": "hi", "kv_transfer_params": params}]},
    lambda body, params: body | {"chat_template_kwargs": {"kv_transfer_params": params}},
    lambda body, params: body | (params if isinstance(params, dict) else {"remote_host": params}),
    lambda body, params: encoded({"kv_transfer_params": params} | body),
    # The same name once more, and with letters escaped: parsers differ on which counts.
    lambda body, params: b'{"kv_transfer_params": ' + encoded(params) + b"," + encoded(body)[1:],
    lambda body, params: b'{"kv_transfer_p\\u0061rams": ' + encoded(params) + b"," + encoded(body)[1:],
    lambda body, params: (
        encoded(body)[:-1] + b', "kv_transfer_params": null, "kv_transfer_params": ' + encoded(params) + b"}"
    ),
)


def _forgery(place: Callable[[Body, Any], Body | bytes], params: Any) -> Callable[[Body], Body | bytes]:
    return lambda body: place(body, params)


def spoilers() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    """What turns a body's bytes into something that is hardly JSON."""
    places, noise = st.floats(0, 1), st.binary(min_size=1, max_size=8)
    return st.one_of(
        st.builds(lambda place: lambda raw: raw[: int(len(raw) * place)], places),
        st.builds(lambda place, extra: lambda raw: _inserted(raw, place, extra), places, noise),
        st.builds(lambda place, extra: lambda raw: _replaced(raw, place, extra), places, noise),
        st.builds(lambda extra: lambda raw: raw + extra, noise),
        st.sampled_from([*_SPOILED]),
        st.binary(max_size=200).map(lambda noise: lambda raw: noise),
    )


def _deep(opening: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + b"1" + closing * depth


_SPOILED: tuple[Callable[[bytes], bytes], ...] = (
    lambda raw: b"\xef\xbb\xbf" + raw,
    lambda raw: raw.decode().encode("utf-16"),
    lambda raw: raw + raw,
    lambda raw: b"[" + raw + b"]",
    lambda raw: raw[:-1] + b', "temperature": NaN}',
    lambda raw: raw[:-1] + b', "temperature": 1e999}',
    lambda raw: raw[:-1] + b', "seed": ' + b"9" * 5000 + b"}",
    lambda raw: raw[:-1] + b', "user": "\\ud800"}',
    lambda raw: raw[:-1] + b', "\\udfff": 1}',
    lambda raw: raw[:-1] + b', "user": "\xed\xa0\x80"}',
    lambda raw: raw[:-1] + b', "tools": ' + _deep(b"[", b"]", 60) + b"}",
    lambda raw: raw[:-1] + b', "tools": ' + _deep(b"[", b"]", 5000) + b"}",
    lambda raw: raw[:-1] + b', "documents": ' + _deep(b'{"a":', b"}", 100_000) + b"}",
    lambda raw: raw[:-1] + b', "messages": ' + b"[" * 200_000 + b"}",
    lambda raw: raw[:-1] + b', "metadata": {' + b",".join(b'"%d": 1' % n for n in range(3000)) + b"}}",
    lambda raw: b"",
    lambda raw: b"null",
    lambda raw: b"\x00" * 300,
)


def _inserted(raw: bytes, place: float, extra: bytes) -> bytes:
    at = int(len(raw) * place)
    return raw[:at] + extra + raw[at:]


def _replaced(raw: bytes, place: float, extra: bytes) -> bytes:
    at = int(len(raw) * place)
    return raw[:at] + extra + raw[at + len(extra) :]


def large(model: str, mark: str, size: int) -> st.SearchStrategy[tuple[str, tuple[Piece, ...]]]:
    """A path and a body of about `size` bytes: long texts, token ids, messages, tools, names or stop words."""
    head = f'{{"model": "{model}", "max_tokens": 1, '.encode()
    chat, text = "/v1/chat/completions", "/v1/completions"
    message = f'{{"role": "user", "content": "{mark}"}},'.encode()

    def filled(path: str, before: bytes, unit: bytes, after: bytes) -> tuple[str, tuple[Piece, ...]]:
        return path, (Piece(head + before), Piece(unit, size // len(unit)), Piece(after))

    return st.sampled_from(
        [
            filled(text, b'"prompt": "' + mark.encode(), b" a ferry", b'"}'),
            filled(text, b'"prompt": "' + mark.encode(), b"x", b'"}'),
            filled(text, b'"prompt": [1', b",12345", b"]}"),
            filled(text, b'"prompt": "hi", "stop": ["a"', b',"no such word"', b"]}"),
            filled(text, b'"prompt": "hi", "logit_bias": {"1": 1', b',"12":-1', b"}}"),
            filled(text, b'"prompt": "hi", "user": "', b"u", b'"}'),
            filled(chat, b'"messages": [', message, message[:-1] + b"]}"),
            filled(chat, b'"messages": [{"role": "user", "content": "', b"\\u00e9", b'"}]}'),
            filled(chat, b'"messages": [{"role": "user", "content": [', b'{"type": "text", "text": "a"},', b"{}]}]}"),
            filled(chat, b'"messages": [], "tools": [', b"{},", b"{}]}"),
            filled(chat, b'"messages": [], "metadata": ', b"[", b""),
        ]
    )
