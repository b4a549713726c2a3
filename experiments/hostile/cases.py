"""What a hostile client sends, drawn by hypothesis: every kind as a strategy, and so many cases of a seed."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from experiments.hostile import bodies, protocol
from experiments.hostile.wire import Case, Piece, request

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MEGABYTE = 2**20


@dataclass(frozen=True, slots=True)
class Known:
    """What the attackers know: their own keys, the model's name, the sessions of others by name, a worker's address."""

    keys: tuple[str, ...]
    model: str
    sessions: tuple[str, ...]
    mark: str  # in every prompt of theirs, so that it can be looked for
    side_channel_port: int


# How many of a hundred cases are of each kind.
SHARES = {
    "fields": 34,
    "forged": 12,
    "json": 14,
    "large": 1,
    "headers": 9,
    "protocol": 10,
    "slow": 4,
    "leaves": 7,
    "keys": 5,
    "sessions": 4,
}


def draw(known: Known, count: int, seed: int) -> list[Case]:
    """Cases number 0 to `count` - 1 of a seed, the same for every run with one version of hypothesis."""
    found = [
        case
        for (name, share), strategy in zip(SHARES.items(), _strategies(known), strict=True)
        for case in _examples(strategy, -(-count * share // 100), f"{seed} {name}")
    ]
    random.Random(seed).shuffle(found)
    return found[:count]


def _examples(strategy: st.SearchStrategy[Case], count: int, seed: str) -> list[Case]:
    found: list[Case] = []
    while len(found) < count:  # a run of hypothesis may stop before its examples are used up

        @hypothesis.seed(f"{seed} {len(found)}")
        @settings(
            max_examples=count - len(found),
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def collect(case: Case) -> None:
            found.append(case)

        collect()
    return found[:count]


def _strategies(known: Known) -> list[st.SearchStrategy[Case]]:
    """In the order of SHARES."""
    kinds: Mapping[str, Callable[[Known], st.SearchStrategy[Case]]] = {
        "fields": _fields,
        "forged": _forged,
        "json": _json,
        "large": _large,
        "headers": _headers,
        "protocol": _protocol,
        "slow": _slow,
        "leaves": _leaves,
        "keys": _keys,
        "sessions": _sessions,
    }
    return [kinds[name](known) for name in SHARES]


def _bodies(known: Known) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A path and a body that is in order for it."""
    return st.one_of(
        st.tuples(st.just(CHAT), bodies.chat(known.model, known.mark)),
        st.tuples(st.just(TEXT), bodies.text(known.model, known.mark)),
    )


def _headers_of(known: Known) -> st.SearchStrategy[dict[str, str]]:
    keys = st.sampled_from(known.keys)
    return keys.map(lambda key: {"authorization": f"Bearer {key}", "content-type": "application/json"})


def _post(
    kind: str, path: str, headers: Mapping[str, str] | Sequence[tuple[str, str]], body: object, **fields: Any
) -> Case:
    raw = body if isinstance(body, bytes) else bodies.encoded(body)
    return Case(kind, request("POST", path, headers, [Piece(raw)]), **fields)


def _fields(known: Known) -> st.SearchStrategy[Case]:
    """Wrong types and odd values in up to four fields."""
    changed = st.tuples(_bodies(known), bodies.changes()).map(lambda drawn: (drawn[0][0], drawn[0][1] | drawn[1]))
    return st.builds(lambda pair, headers: _post("fields", pair[0], headers, pair[1]), changed, _headers_of(known))


def _forged(known: Known) -> st.SearchStrategy[Case]:
    """Transfer parameters of the attacker's own, wherever they might get through."""
    return st.builds(
        lambda pair, forge, headers: _post("forged", pair[0], headers, forge(pair[1])),
        _bodies(known),
        bodies.forgeries(known.side_channel_port),
        _headers_of(known),
    )


def _json(known: Known) -> st.SearchStrategy[Case]:
    return st.builds(
        lambda pair, spoil, headers: _post("json", pair[0], headers, spoil(bodies.encoded(pair[1]))),
        _bodies(known),
        bodies.spoilers(),
        _headers_of(known),
    )


def _large(known: Known) -> st.SearchStrategy[Case]:
    """Bodies of up to 9 MB, which is more than the router takes."""

    def build(pair: tuple[str, tuple[Piece, ...]], headers: dict[str, str]) -> Case:
        return Case("large", request("POST", pair[0], headers, pair[1]))

    size = st.integers(MEGABYTE // 4, 9 * MEGABYTE)
    return st.builds(build, size.flatmap(lambda size: bodies.large(known.model, known.mark, size)), _headers_of(known))


def _headers(known: Known) -> st.SearchStrategy[Case]:
    """Headers that are many, long, doubled, contradictory or not text."""

    def build(pair: tuple[str, dict[str, Any]], headers: dict[str, str], odd: list[tuple[str, str]]) -> Case:
        return _post("headers", pair[0], [*headers.items(), *odd], pair[1])

    return st.builds(build, _bodies(known), _headers_of(known), protocol.odd_headers())


def _protocol(known: Known) -> st.SearchStrategy[Case]:
    """Not quite HTTP: garbage, pipelines, other methods and paths."""

    def whole(pair: tuple[str, dict[str, Any]], headers: dict[str, str]) -> tuple[Piece, ...]:
        return request("POST", pair[0], headers, [Piece(bodies.encoded(pair[1]))])

    valid = st.builds(whole, _bodies(known), _headers_of(known))
    garbage = st.builds(lambda pieces: Case("protocol", pieces, then="half_close"), protocol.garbage(valid))
    paths = st.builds(
        lambda method, path, headers: Case("protocol", request(method, path, headers)),
        protocol.METHODS,
        protocol.paths(known.model),
        _headers_of(known),
    )
    return garbage | paths


def _slow(known: Known) -> st.SearchStrategy[Case]:
    """A request that comes in small pieces, or of which the end never comes; half of them wait what happens."""

    def build(
        pair: tuple[str, dict[str, Any]], headers: dict[str, str], cut: float, pause: float, leave: float
    ) -> Case:
        raw = b"".join(
            piece.unit * piece.times for piece in request("POST", pair[0], headers, [Piece(bodies.encoded(pair[1]))])
        )
        sent = raw[: int(len(raw) * cut)]
        size = max(1, len(sent) // 5)
        pieces = tuple(Piece(sent[start : start + size]) for start in range(0, len(sent), size))
        return Case("slow", pieces or (Piece(b"P"),), then="leave", pause_s=pause, leave_s=leave)

    cuts, pauses = st.floats(0, 1), st.floats(0.01, 0.5)
    return st.builds(build, _bodies(known), _headers_of(known), cuts, pauses, st.floats(0, 5))


def _leaves(known: Known) -> st.SearchStrategy[Case]:
    """A client that asks for a long answer and is gone at some moment of it."""

    def build(pair: tuple[str, dict[str, Any]], headers: dict[str, str], stream: bool, leave: float) -> Case:
        body = pair[1] | {"max_tokens": 64, "ignore_eos": True, "stream": stream}
        return _post("leaves", pair[0], headers, body, then="leave", leave_s=leave)

    return st.builds(build, _bodies(known), _headers_of(known), st.booleans(), st.floats(0, 1.5))


def _keys(known: Known) -> st.SearchStrategy[Case]:
    """No key, half a key, two keys: nobody gets in, wherever."""

    def build(path: str, headers: list[tuple[str, str]], pair: tuple[str, dict[str, Any]]) -> Case:
        pieces = request("POST", pair[0], headers, [Piece(bodies.encoded(pair[1]))]) if path in (CHAT, TEXT) else ()
        return Case("keys", pieces or request("GET", path, headers), open_to=frozenset({401}))

    closed = st.sampled_from([CHAT, TEXT, "/v1/models", "/metrics", "/status.json", f"/v1/models/{known.model}"])
    return st.builds(build, closed, protocol.bad_keys(known.keys), _bodies(known))


def _sessions(known: Known) -> st.SearchStrategy[Case]:
    """The names of other tenants' sessions, and what an attacker may think their salt is."""

    def build(pair: tuple[str, dict[str, Any]], headers: dict[str, str], session: str, extra: dict[str, Any]) -> Case:
        return _post("sessions", pair[0], headers | {"x-session-id": session}, pair[1] | extra)

    sessions = st.sampled_from(known.sessions)
    extras: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.just({}),
        sessions.map(lambda name: {"user": name}),
        sessions.map(lambda name: {"prompt_cache_key": name}),
        st.sampled_from(["", "cache_salt", "honest", "0" * 64, json.dumps(None)]).map(
            lambda salt: {"cache_salt": salt}
        ),
    )
    return st.builds(build, _bodies(known), _headers_of(known), sessions, extras)
