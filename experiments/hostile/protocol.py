"""Hostile HTTP: headers, keys, paths and bytes that are no request at all."""

from hypothesis import strategies as st

from experiments.hostile.wire import Piece

METHODS = st.sampled_from(
    ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
)

_HEADERS: list[list[tuple[str, str]]] = [
    [("x-filler", "a" * 40_000)],
    [("x-filler", "a" * 200_000)],
    [("a" * 20_000, "b")],
    [(f"x-{number}", "a") for number in range(150)],
    [(f"x-{number}", "a" * 300) for number in range(110)],
    [("cookie", "a=b; " * 7000)],
    [("content-length", "-1")],
    [("content-length", "5"), ("content-length", "6")],
    [("content-length", "99999999999999999999")],
    [("content-length", "9000000000")],
    [("content-length", "+10")],
    [("transfer-encoding", "chunked")],
    [("transfer-encoding", "chunked"), ("content-length", "10")],
    [("transfer-encoding", "gzip, chunked")],
    [("transfer-encoding", "xchunked")],
    [("content-encoding", "gzip")],
    [("content-type", "multipart/form-data; boundary=x")],
    [("content-type", "application/json; charset=utf-7")],
    [("content-type", "")],
    [("expect", "100-continue")],
    [("expect", "nothing")],
    [("upgrade", "websocket"), ("connection", "Upgrade")],
    [("upgrade", "h2c"), ("connection", "Upgrade, close"), ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")],
    [("host", ""), ("host", "two")],
    [("host", "a" * 3000)],
    [("x-session-id", "\xff\xfe" * 50)],
    [("x-session-id", "s" * 30_000)],
    [("x-session-id", "")],
    [("x-request-id", "mine"), ("x-data-parallel-rank", "7"), ("x-vllm-priority", "-5")],
    [("traceparent", "00-" + "f" * 32 + "-" + "f" * 16 + "-ff")],
    [("traceparent", "\x01")],
    [("accept-encoding", "br;q=nan")],
    [("range", "bytes=0-")],
    [("x-forwarded-for", "10.0.0.1" + ", 10.0.0.1" * 500)],
    [("accept", "text/event-stream, */*;q=" + "9" * 500)],
]

_PATHS = [
    *(
        "/",
        "//",
        "/health",
        "/health/",
        "/metrics",
        "/status.json",
        "/status.js",
        "/docs",
        "/openapi.json",
        "/v1",
        "/v1/",
    ),
    *(
        "/v1/models",
        "/v1/models/",
        "/v1/models/..%2f..",
        "/v1/models/%00",
        "/v1/models/\xff",
        "/v1//models",
        "/V1/MODELS",
    ),
    *("/v1/embeddings", "/v1/responses", "/v1/audio/speech", "/v1/files", "/invocations", "/tokenize", "/detokenize"),
    *("/reset_prefix_cache", "/sleep", "/pause", "/load", "/server_info", "/collective_rpc", "/v1/load_lora_adapter"),
    *(
        "/status/../app.py",
        "/..%2f..%2fetc/passwd",
        "/admin",
        "/admin/workers",
        "/v1/completions/",
        "/v1/chat/completions/",
    ),
    *(
        "/v1/chat/completions?model=x",
        "/%2576%31/models",
        "/?" + "a=b&" * 500,
        "/" + "a" * 8000,
        "/" + "../" * 300,
        "*",
    ),
    *("http://127.0.0.1:9/v1/models", "127.0.0.1:9"),
]

_GARBAGE = [
    b"",
    b"\r\n" * 500,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # the start of TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 40,
    b"GET /\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\nhost: a\n\n",
    b"GET\t/\tHTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
    b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\na\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;"
    + b"e" * 90_000
    + b"\r\nhello\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"EHLO there\r\n",
    b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
]


def odd_headers() -> st.SearchStrategy[list[tuple[str, str]]]:
    names = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=12)
    values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40)
    drawn = st.lists(st.tuples(names, values), min_size=1, max_size=6)
    return st.sampled_from(_HEADERS) | drawn


def paths(model: str) -> st.SearchStrategy[str]:
    drawn = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30).map("/".__add__)
    return st.sampled_from([*_PATHS, f"/v1/models/{model}", f"/v1/models/{model}/"]) | drawn


def garbage(valid: st.SearchStrategy[tuple[Piece, ...]]) -> st.SearchStrategy[tuple[Piece, ...]]:
    """Bytes that are no request, or a valid one behind or in front of some, or several at once."""
    raw = st.sampled_from(_GARBAGE) | st.binary(max_size=300)
    noise = raw.map(lambda raw: (Piece(raw),))
    return st.one_of(
        noise,
        st.builds(lambda request, noise: (*request, *noise), valid, noise),
        st.builds(lambda noise, request: (*noise, *request), noise, valid),
        st.lists(valid, min_size=2, max_size=5).map(_pipeline),
    )


def _pipeline(requests: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """All at once; only the last one asks for the connection's end."""
    kept = [
        Piece(piece.unit.replace(b"connection: close", b"connection: keep-alive")) for one in requests for piece in one
    ]
    return (*kept[:-2], *requests[-1])


def bad_keys(keys: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, str]]]:
    """What stands in `Authorization` and lets nobody in; `keys` are good ones to spoil."""

    def spoiled(key: str) -> list[list[tuple[str, str]]]:
        values = [
            key,
            f"Basic {key}",
            f"Bearer {key[:-1]}",
            f"Bearer {key}a",
            f"Bearer {key.swapcase()}",
            f"Bearer{key}",
        ]
        values += [
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {key} {key}",
            f"Bearer \xff{key}",
            "Bearer " + "a" * 5000,
            "Bearer None",
        ]
        single = [[("authorization", value)] for value in values]
        return [*single, [], [("authorization", f"Bearer {key}")] * 2, [("x-api-key", key)], [("api-key", key)]]

    return st.sampled_from([headers for key in keys for headers in spoiled(key)])
