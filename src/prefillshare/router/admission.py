"""Which requests are let in: everything that is decided before a worker is involved."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

from starlette.requests import Request

from prefillshare.router.errors import RouterError, bad_request, model_not_found
from prefillshare.router.sessions import SessionKey, session_key

Endpoint = Literal["chat/completions", "completions"]

# Of these vLLM 0.32 refuses anything but an object with a 500, which looks like a worker that fails.
_OBJECTS = ("structured_outputs",)


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted request. `body` is the client's, unchanged; legs make copies of it."""

    request_id: str
    endpoint: Endpoint
    model: str
    body: Mapping[str, Any]
    stream: bool
    session: SessionKey | None
    salt: str | None = None  # of the prefix caches; the router's, never the client's


class _Refusal(NamedTuple):
    why: str
    harmless: tuple[Any, ...] = (None,)  # values that mean "not used"


_INTERNAL = "it belongs to the router, which passes it between its workers"
_ONE_ANSWER = "one prefill hands its KV to one answer; send one request for each answer"
_RECOMPUTES = "it makes the decode worker compute the prompt with its own weights; leave it out"
_CUTS = "the prompt is never cut; send the part that you want read"
_TEMPLATE = (
    "the base's chat template is part of what the modules were trained on; send messages, or text to /v1/completions"
)

# Fields of vLLM 0.32 that would break the two legs, or that reach into a worker. Every other field is safe: what shapes
# the prompt is rendered by the base alone (the decode worker is given its token ids), the rest only shapes sampling.
REFUSED: dict[str, _Refusal] = {
    # `vllm_xargs` is merged into the very dictionary in which a worker looks for `kv_transfer_params`.
    "kv_transfer_params": _Refusal(_INTERNAL, ()),
    "ec_transfer_params": _Refusal(_INTERNAL, ()),
    "vllm_xargs": _Refusal(_INTERNAL),
    "request_id": _Refusal("the router names every request; read x-request-id in the response"),
    "data_parallel_rank": _Refusal("the router chooses the worker"),
    "priority": _Refusal("workers serve in order of arrival", (None, 0)),
    # It decides whose prompts are found in the caches: with another tenant's salt, that tenant's (`tenants`).
    "cache_salt": _Refusal("the router salts the caches by API key"),
    # Prompt log-probabilities switch on `skip_reading_prefix_cache`, which also drops the handed-over KV. 0 is on, too.
    "prompt_logprobs": _Refusal(_RECOMPUTES),
    "echo": _Refusal(_RECOMPUTES, (None, False)),
    "n": _Refusal(_ONE_ANSWER, (None, 1)),
    "best_of": _Refusal(_ONE_ANSWER, (None, 1)),
    "use_beam_search": _Refusal(_ONE_ANSWER, (None, False)),
    "truncate_prompt_tokens": _Refusal(_CUTS),
    "truncation_side": _Refusal(_CUTS),
    "prompt_embeds": _Refusal("the base prefills tokens; send `prompt`"),
    "suffix": _Refusal("fill-in-the-middle prompts are not supported", (None, "")),
    "chat_template": _Refusal(_TEMPLATE),
    "mm_processor_kwargs": _Refusal("the prompt is text", (None, {})),
    "media_io_kwargs": _Refusal("the prompt is text", (None, {})),
    # The decode worker is handed token ids and never has the text.
    "return_prompt_text": _Refusal("ask for return_token_ids instead", (None, False)),
    "routed_experts_prompt_start": _Refusal("experts of the prompt belong to the base", (None, 0)),
}


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
        RouterError: 400 (malformed, or a field that is refused), 404 (unknown model). The message names the field.
    """
    body = _json_object(raw)
    _check_fields(body)
    model = body.get("model")
    if not isinstance(model, str):
        raise bad_request("`model` must be the name of a decode module.", "model")
    if model not in known_models:
        raise model_not_found(model, sorted(known_models))
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        # Workers also read "yes" and 1 as true; the router and its workers must not disagree about it.
        raise bad_request("`stream` must be true or false.", "stream")
    for field in _OBJECTS:
        if not isinstance(body.get(field), dict | None):
            raise bad_request(f"`{field}` must be an object.", field)
    return Call(
        request_id=request_id,
        endpoint=endpoint,
        model=model,
        body=body,
        stream=bool(stream),
        session=session_key(headers, body),
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


def _check_fields(body: Mapping[str, Any]) -> None:
    for field in body.keys() & REFUSED.keys():
        refusal = REFUSED[field]
        if body[field] not in refusal.harmless:
            raise bad_request(f"`{field}` is not supported: {refusal.why}.", field, "unsupported_parameter")
    kwargs = body.get("chat_template_kwargs")
    if isinstance(kwargs, dict) and kwargs.get("chat_template") is not None:
        raise bad_request(
            f"`chat_template_kwargs.chat_template` is not supported: {_TEMPLATE}.",
            "chat_template_kwargs",
            "unsupported_parameter",
        )
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and not all(isinstance(token, int) for token in prompt):
        raise bad_request(
            "`prompt` holds several prompts: one prefill serves one prompt; send one request for each.",
            "prompt",
            "unsupported_parameter",
        )


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
