"""How large and how deep a request may be."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prefillshare.router.errors import RouterError, bad_request
from prefillshare.router_config import LimitsConfig

MAX_CONTAINERS = 200_000  # objects and lists in a body; each takes some hundred bytes of memory

# A worker goes through these in its loop with every token, while all of its answers wait: for some 40 ms with two
# million tokens to stop at, for a second and more with patterns of up to 8,000 tokens, since it looks for every length.
# With these limits it is 20 us, and at most 1 ms.
MAX_STOP_TOKEN_IDS = 1_024
MAX_REPETITION_TOKENS = 1_024  # at an answer's end: `max_pattern_size` x `min_count`
MAX_REPETITION_WORK = 32_768  # so many tokens are compared: those, for each length up to `max_pattern_size`

_CONTAINERS = frozenset({dict, list})  # what JSON is parsed to, exactly
_GRAMMARS = ("response_format", "structured_outputs")


def check_headers(headers: Sequence[tuple[bytes, bytes]], limits: LimitsConfig) -> None:
    """Raises RouterError (431) when there are too many headers, or too many bytes in them."""
    if len(headers) > limits.max_headers:
        raise _headers_too_large(f"it has {len(headers)} headers, at most {limits.max_headers} are read")
    size = sum(len(name) + len(value) for name, value in headers)
    if size > limits.max_header_bytes:
        raise _headers_too_large(f"its headers have {size} bytes, at most {limits.max_header_bytes} are read")


def check_body(body: Mapping[str, Any], limits: LimitsConfig) -> None:
    """Raises RouterError (400), naming the field, when one is too deep, lists too much or costs a worker too much."""
    for field, most in (("messages", limits.max_messages), ("tools", limits.max_tools)):
        value = body.get(field)
        if isinstance(value, list) and len(value) > most:
            raise bad_request(f"`{field}` has {len(value)} entries; at most {most} are accepted.", field)
    containers = 0
    for field, value in body.items():
        containers += _containers(field, value, limits.max_depth)
        if containers > MAX_CONTAINERS:
            raise bad_request(f"The request has more than {MAX_CONTAINERS} objects and lists.", field[:64])
    _check_schemas(body, limits)
    _check_ends(body)


def _check_schemas(body: Mapping[str, Any], limits: LimitsConfig) -> None:
    """A worker compiles one grammar after the other, and cannot stop: xgrammar takes 1 s for an object of 500 optional
    properties and 6 s for one of 1,000, during which calls of others that need a grammar wait."""
    for field in _GRAMMARS:
        if type(body.get(field)) in _CONTAINERS and (size := _size(body[field])) > limits.max_schema_bytes:
            raise bad_request(f"`{field}` has {size} bytes; at most {limits.max_schema_bytes} are accepted.", field)
    for field in (*_GRAMMARS, "tools"):
        most = max((len(value) for value in _properties(_read(body.get(field)))), default=0)
        if most > limits.max_properties:
            raise bad_request(
                f"`{field}` has an object of {most} properties; at most {limits.max_properties} are accepted.", field
            )


def _check_ends(body: Mapping[str, Any]) -> None:
    tokens = body.get("stop_token_ids")
    if isinstance(tokens, list) and len(tokens) > MAX_STOP_TOKEN_IDS:
        raise bad_request(
            f"`stop_token_ids` has {len(tokens)} entries; at most {MAX_STOP_TOKEN_IDS} are accepted.", "stop_token_ids"
        )
    field = "repetition_detection"
    detection = body.get(field)
    if not isinstance(detection, dict):
        return
    size, count = detection.get("max_pattern_size"), detection.get("min_count")
    for name, value in (("max_pattern_size", size), ("min_count", count)):
        if isinstance(value, str):  # a worker reads "8000" as a number
            raise bad_request(f"`{field}.{name}` must be a number.", field)
    if not isinstance(size, int | float) or not isinstance(count, int | float):
        return
    tokens = int(size) * int(count)
    if tokens > min(MAX_REPETITION_TOKENS, MAX_REPETITION_WORK // max(int(size), 1)):
        raise bad_request(
            f"`{field}` has `max_pattern_size` {size!r:.20} and `min_count` {count!r:.20}; their product may be "
            f"{MAX_REPETITION_TOKENS} at most, and that times `max_pattern_size` again {MAX_REPETITION_WORK}.",
            field,
        )


def _size(value: Any) -> int:
    """Of its shortest JSON in UTF-8."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def _read(value: Any) -> Any:
    """With schemas that stand in it as text, as vLLM's `structured_outputs` may have them."""
    if not isinstance(value, dict):
        return value
    return [value, *(_parsed(text) for text in value.values() if isinstance(text, str))]


def _parsed(text: str) -> Any:
    with suppress(ValueError, RecursionError):  # text that is no JSON: a regular expression, or what vLLM refuses
        return json.loads(text)
    return None


def _properties(value: Any) -> Iterator[dict[str, Any]]:
    """What stands under "properties", at any depth."""
    waiting = [value] if type(value) in _CONTAINERS else []
    while waiting:
        container = waiting.pop()
        if isinstance(container, dict) and isinstance(found := container.get("properties"), dict):
            yield found
        waiting += _inner(container)


def _containers(field: str, value: Any, max_depth: int) -> int:
    """How many objects and lists the field's value holds, itself included. Level by level, not by recursion."""
    found = 0
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(max_depth):
        found += len(level)
        if not level or found > MAX_CONTAINERS:
            return found
        level = [inner for container in level for inner in _inner(container)]
    if level:
        name = field[:64]
        raise bad_request(f"`{name}` is nested too deeply; at most {max_depth} levels are accepted.", name)
    return found


def _inner(container: dict[str, Any] | list[Any]) -> list[Any]:
    """The objects and lists directly inside."""
    children = container.values() if isinstance(container, dict) else container
    if _CONTAINERS.isdisjoint(map(type, children)):  # a million token ids are seen through in 40 ms, not 400
        return []
    return [child for child in children if type(child) in _CONTAINERS]


def _headers_too_large(why: str) -> RouterError:
    return RouterError(431, f"The request was not read: {why}.", code="headers_too_large")
