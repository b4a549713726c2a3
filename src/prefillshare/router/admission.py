"""Which requests are let in: everything that is decided before a worker is involved."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from prefillshare.router.call import Call, Endpoint
from prefillshare.router.errors import RouterError, bad_request, model_not_found
from prefillshare.router.flow.deadline import patience_s
from prefillshare.router.sampling import check_sampling
from prefillshare.router.sessions import session_key
from prefillshare.router.unsupported import check_fields, without_unused

# Of these vLLM 0.32 refuses anything but an object with a 500, which looks like a worker that fails.
_OBJECTS = ("structured_outputs",)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole request body.

    Raises:
        RouterError: 413 as soon as the body is known to be longer than `max_bytes`.
        starlette.requests.ClientDisconnect: the client left before it had sent everything.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def admit(
    raw: bytes, *, endpoint: Endpoint, headers: Mapping[str, str], known_models: Collection[str], request_id: str
) -> Call:
    """Checks a request body and makes it a call.

    Raises:
        RouterError: 400 (malformed, or a field or value that is refused), 404 (unknown model). The message names it.
    """
    body = _json_object(raw)
    check_fields(endpoint, body)
    check_sampling(endpoint, body)
    model = body.get("model")
    if not isinstance(model, str):
        raise bad_request("`model` must be the name of a decode module.", "model")
    if model not in known_models:
        raise model_not_found(model, sorted(known_models))
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        # Workers also read "yes" and 1 as true; the router and its workers must not disagree about it.
        raise bad_request("`stream` must be true or false.", "stream")
    logprobs = body.get("logprobs")
    if endpoint == "chat/completions" and logprobs is not None and not isinstance(logprobs, bool):
        # Workers read a completion's number as true or false: 1 as without alternatives, 0 as none at all.
        raise bad_request("`logprobs` of a chat must be true or false; their number is `top_logprobs`.", "logprobs")
    for field in _OBJECTS:
        if not isinstance(body.get(field), dict | None):
            raise bad_request(f"`{field}` must be an object.", field)
    return Call(
        request_id=request_id,
        endpoint=endpoint,
        model=model,
        body=without_unused(endpoint, body),
        stream=bool(stream),
        session=session_key(headers, body),
        patience_s=patience_s(headers),
    )


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode()
        body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            # "\ud800" alone is legal JSON but not text that a tokenizer takes.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The request body is not valid JSON: {type(error).__name__}.") from None
    if not isinstance(body, dict):
        raise bad_request("The request body must be a JSON object.")
    return body


def _finite(text: str) -> float:
    """1e999 is legal JSON, but as infinity it would go to a worker as what is not."""
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_large(max_bytes: int) -> RouterError:
    return RouterError(413, f"The request body is longer than {max_bytes} bytes.", code="request_too_large")
