"""What each leg of a call sends, and what the prefill leg must give back.

Both legs must see the same prompt, token for token: the decode worker pulls KV by position, and a position that it does
not find there it would compute with its own weights. So only the base renders and tokenises; the decode leg carries the
token ids that the base reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefillshare.instructions import Placement, place_instructions
from prefillshare.router.call import Call
from prefillshare.router.errors import bad_request, worker_failed
from prefillshare.router.placement.chunks import Chain
from prefillshare.router.pool import Worker

# Everything in a request that shapes the prompt. The rest (sampling, stop, logprobs, response_format, ...) is left out
# of the prefill leg: one token is sampled there and thrown away, and e.g. min_tokens > 1 would be refused.
PROMPT_FIELDS = (
    "messages",
    "tools",
    "documents",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "prompt",
)

# What a decode worker needs to find the KV. Without `remote_host` it dies with a KeyError (vLLM 0.32), without another
# of these it prefills by itself.
_REQUIRED = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


@dataclass(frozen=True, slots=True)
class Handoff:
    """What leg 1 has left for leg 2: the whereabouts of the prompt's KV, which the prefill worker holds on a lease."""

    kv_transfer_params: Mapping[str, Any]  # as the prefill worker gave them
    prompt_token_ids: list[int]
    cached_tokens: int  # of the prompt, found in the prefill worker's cache


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A leg 1 that has succeeded on `worker`."""

    worker: Worker
    handoff: Handoff
    chain: Chain  # of the prompt's tokens, made once for all who go by its blocks
    seconds: float
    placed_by: str  # the rule that chose the worker


def prefill_body(call: Call, base: str, instructions: Placement = "in_place") -> dict[str, Any]:
    """The prompt for the base of that name, with the role's instructions where the module was trained to read them.

    Raises:
        RouterError: 400 when they have to move and are not text.
    """
    body = {field: call.body[field] for field in PROMPT_FIELDS if field in call.body}
    if "messages" in body:
        body["messages"] = _placed(body, instructions)
    if body.get("tools"):
        # Any other choice has the worker parse its one token as a tool call. "none" renders the same prompt (unless
        # the worker runs with --exclude-tools-when-tool-choice-none, which must stay off).
        body["tool_choice"] = "none"
    if call.endpoint == "chat/completions":
        body["max_completion_tokens"] = 1
    return (
        body
        | _salt(call)
        | {
            "model": base,
            "max_tokens": 1,
            "temperature": 0,
            "n": 1,
            "stream": False,
            "return_token_ids": True,
            "kv_transfer_params": {
                "do_remote_decode": True,
                "do_remote_prefill": False,
                "remote_engine_id": None,
                "remote_block_ids": None,
                "remote_host": None,
                "remote_port": None,
            },
        }
    )


def _salt(call: Call) -> dict[str, Any]:
    """On both legs: each role's cache would otherwise tell tenants about each other."""
    return {} if call.salt is None else {"cache_salt": call.salt}


def _placed(body: Mapping[str, Any], instructions: Placement) -> Any:
    messages = body["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages  # the worker says what is wrong with it
    # The message that the answer continues is part of the answer, so instructions go before it.
    context = len(messages) - 1 if body.get("continue_final_message") else len(messages)
    try:
        return place_instructions(messages[:context], instructions) + messages[context:]
    except ValueError as error:
        raise bad_request(f"`messages`: {error}.", "messages") from None


def decode_body(call: Call, handoff: Handoff) -> dict[str, Any]:
    """The client's body with the KV's whereabouts and the prompt's token ids.

    Its `model` is the admitted one: a worker that hosts several modules goes by it, and without it would decode with
    the checkpoint alone.

    vLLM takes the ids of a chat inside `kv_transfer_params` (and removes them before the connector sees it), those of a
    completion as its prompt.
    """
    params = dict(handoff.kv_transfer_params)
    body = {**call.body, "model": call.model, "kv_transfer_params": params}
    if call.stream and not asks_for_usage(call):
        body["stream_options"] = _with_usage(call.body.get("stream_options"))
    if call.endpoint == "chat/completions":
        params["prompt_token_ids"] = handoff.prompt_token_ids
    else:
        body["prompt"] = handoff.prompt_token_ids
    return body | _salt(call)


def asks_for_usage(call: Call) -> bool:
    """Whether the client of a stream wants its closing usage event, or has said something the worker must judge."""
    options = call.body.get("stream_options")
    if options is None:
        return False
    return not isinstance(options, dict) or options.get("include_usage") not in (None, False)


def _with_usage(options: dict[str, Any] | None) -> dict[str, Any]:
    """The router counts output tokens by the closing usage event and keeps it from a client that has not asked for it.

    Usage in every event, which hangs on `include_usage`, then stays as it would have been: off.
    """
    return {**(options or {}), "include_usage": True, "continuous_usage_stats": False}


def read_prefill(call: Call, worker: Worker, response: object) -> Handoff:
    """Takes the KV's whereabouts out of a prefill worker's response.

    Raises:
        RouterError: 502 unless the response has everything the decode leg needs. There is no going on without it: a
            decode worker without KV would silently prefill with its own weights.
    """
    if not isinstance(response, dict):
        raise worker_failed(worker.name, "prefill returned no KV")
    params = response.get("kv_transfer_params")
    if not isinstance(params, dict) or not _names_kv(params):
        raise worker_failed(worker.name, "prefill returned no KV")
    ids = _prompt_token_ids(call, response)
    if not ids:
        raise worker_failed(worker.name, "prefill returned no prompt token ids")
    cached = _cached_tokens(response, params)
    return Handoff(params, ids, min(cached, len(ids)))


def read_prompt(call: Call, response: Mapping[str, Any]) -> tuple[list[int], int]:
    """The prompt's token ids as the prefill worker made them, and how many of them it found in its cache."""
    return _prompt_token_ids(call, response), _cached_tokens(response, {})


def _names_kv(params: Mapping[str, Any]) -> bool:
    """`remote_block_ids` is a list of block ids for each KV cache group."""
    groups = params.get("remote_block_ids")
    return (
        params.get("do_remote_prefill") is True
        and all(params.get(key) not in (None, "") for key in _REQUIRED)
        and isinstance(groups, list)
        and len(groups) > 0
        and all(group != [] for group in groups)
    )


def _prompt_token_ids(call: Call, response: Mapping[str, Any]) -> list[int]:
    holder: Any = response
    if call.endpoint == "completions":
        choices = response.get("choices")
        holder = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    ids = holder.get("prompt_token_ids")
    return ids if isinstance(ids, list) and set(map(type, ids)) <= {int} else []


def _cached_tokens(response: Mapping[str, Any], params: Mapping[str, Any]) -> int:
    """From usage if the worker runs with --enable-prompt-tokens-details, else from the connector's parameters."""
    usage = response.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    for found in (details, params):
        for key in ("cached_tokens", "remote_prefill_cached_tokens"):
            value = found.get(key) if isinstance(found, dict) else None
            if isinstance(value, int) and value >= 0:
                return value
    return 0
