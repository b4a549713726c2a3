"""What requests may not ask for, and why. docs/openai.md lists every field; tests compare the two.

Fields that would break the two legs, that reach into a worker or into others' answers, or that vLLM 0.32 would silently
ignore although the answer would then not be what was asked for. Every other field is safe: what shapes the prompt is
rendered by the base alone (the decode worker is given its token ids), the rest only shapes sampling, or changes nothing
of the answer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefillshare.router.call import Endpoint
from prefillshare.router.errors import RouterError, bad_request


class Refusal(NamedTuple):
    why: str
    harmless: tuple[Any, ...] = (None,)  # values that mean "not used"


_INTERNAL = "it belongs to the router, which passes it between its workers"
_RECOMPUTES = "it makes the decode worker compute the prompt with its own weights; leave it out"
_CUTS = "the prompt is never cut; send the part that you want read"
_TEMPLATE = (
    "the base's chat template is part of what the modules were trained on; send messages, or text to /v1/completions"
)
_TEXT = "prompts and answers are text"
_ONE_BEST = "every answer is sampled once; ask for several with `n`"
_TOOLS = "send `tools` and `tool_choice`"
_STRUCTURED = "vLLM would ignore it; send `response_format` or `structured_outputs`"
_OTHERS_TOO = "vLLM changes the log-probabilities of other answers with it; ask for alternatives by their number"
_NO_TEMPLATE = "no chat template reads this text; send messages to /v1/chat/completions"

REFUSED: dict[str, Refusal] = {
    # `vllm_xargs` is merged into the very dictionary in which a worker looks for `kv_transfer_params`.
    "kv_transfer_params": Refusal(_INTERNAL, ()),
    "ec_transfer_params": Refusal(_INTERNAL, ()),
    "vllm_xargs": Refusal(_INTERNAL),
    "request_id": Refusal("the router names every request; read x-request-id in the response"),
    "data_parallel_rank": Refusal("the router chooses the worker"),
    "logprob_token_ids": Refusal(_OTHERS_TOO, (None, [])),
    "priority": Refusal("workers serve in order of arrival", (None, 0)),
    # It decides whose prompts are found in the caches: with another tenant's salt, that tenant's (`tenants`).
    "cache_salt": Refusal("the router salts the caches by API key"),
    # Prompt log-probabilities switch on `skip_reading_prefix_cache`, which also drops the handed-over KV. 0 is on, too.
    "prompt_logprobs": Refusal(_RECOMPUTES),
    "echo": Refusal(_RECOMPUTES, (None, False)),
    "best_of": Refusal(_ONE_BEST, (None, 1)),
    "use_beam_search": Refusal(_ONE_BEST, (None, False)),
    "truncate_prompt_tokens": Refusal(_CUTS),
    "truncation_side": Refusal(_CUTS),
    "prompt_embeds": Refusal("the base prefills tokens; send `prompt`"),
    "suffix": Refusal("fill-in-the-middle prompts are not supported", (None, "")),
    "chat_template": Refusal(_TEMPLATE),
    "mm_processor_kwargs": Refusal(_TEXT, (None, {})),
    "media_io_kwargs": Refusal(_TEXT, (None, {})),
    # The decode worker is handed token ids and never has the text.
    "return_prompt_text": Refusal("ask for return_token_ids instead", (None, False)),
    "routed_experts_prompt_start": Refusal("experts of the prompt belong to the base", (None, 0)),
    # What OpenAI does and vLLM ignores.
    "functions": Refusal(_TOOLS, (None, [])),
    "function_call": Refusal(_TOOLS, (None, "none")),
    "modalities": Refusal(_TEXT, (None, ["text"])),
    "audio": Refusal(_TEXT),
    "web_search_options": Refusal("nothing here searches the web"),
    "moderation": Refusal("nothing here moderates"),
    "verbosity": Refusal("say in the messages how long the answer should be", (None, "medium")),
    # What vLLM had once and ignores now.
    "guided_json": Refusal(_STRUCTURED),
    "guided_regex": Refusal(_STRUCTURED),
    "guided_choice": Refusal(_STRUCTURED),
    "guided_grammar": Refusal(_STRUCTURED),
    "guided_whitespace_pattern": Refusal(_STRUCTURED),
}

# Fields of the other endpoint, which vLLM ignores without a word: the answer would be another than was asked for. Those
# that would change nothing (`add_generation_prompt`, `parallel_tool_calls`, ...) are let through.
OF_THE_OTHER: dict[Endpoint, dict[str, Refusal]] = {
    "chat/completions": {
        "prompt": Refusal("a chat reads `messages`; send it to /v1/completions", (None, "", [])),
    },
    "completions": {
        "max_completion_tokens": Refusal("a completion's length is `max_tokens`"),
        "top_logprobs": Refusal("how many alternatives a token has is the number in `logprobs`", (None, 0)),
        "messages": Refusal("a completion reads `prompt`; send them to /v1/chat/completions", (None, [])),
        "tools": Refusal(_NO_TEMPLATE, (None, [])),
        "tool_choice": Refusal(_NO_TEMPLATE, (None, "none", "auto")),  # both mean nothing without tools
        "documents": Refusal(_NO_TEMPLATE, (None, [])),
        "chat_template_kwargs": Refusal(_NO_TEMPLATE, (None, {})),
        "reasoning_effort": Refusal(_NO_TEMPLATE),
        "include_reasoning": Refusal("a completion's text is not parsed; ask /v1/chat/completions", (None, True)),
    },
}

# With any other, vLLM drops the token ids that the base has prefilled, and renders the messages itself.
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "tool_reference"})
_MEDIA_KEYS = frozenset({"input_image", "image_url", "image_embeds", "image_pil", "video_url", "video_embeds"}) | {
    "input_audio",
    "audio_url",
    "audio_embeds",
    "prompt_embeds",
}


def check_fields(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    """Raises RouterError (400), naming the field, when the body asks for what is refused."""
    for refused, where in ((REFUSED, ""), (OF_THE_OTHER[endpoint], f" by /v1/{endpoint}")):
        for field in body.keys() & refused.keys():
            refusal = refused[field]
            if body[field] not in refusal.harmless:
                raise _unsupported(field, field, refusal.why, where)
    kwargs = body.get("chat_template_kwargs")
    if isinstance(kwargs, dict) and kwargs.get("chat_template") is not None:
        raise _unsupported("chat_template_kwargs", "chat_template_kwargs.chat_template", _TEMPLATE)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and (found := _not_text(part)):
                raise _unsupported("messages", found, _TEXT)


def without_unused(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    """A body that `check_fields` has passed, less what it says it does not use, and less an `n` of null.

    vLLM may have no such value for it, as its completions have none for that `n`, which OpenAI allows; and what counts
    or places a prompt need not ask which endpoint it is for: of `messages` and `prompt` there is only the one that it
    reads.
    """
    unused = REFUSED.keys() | OF_THE_OTHER[endpoint].keys()
    return {field: value for field, value in body.items() if field not in unused and (field, value) != ("n", None)}


def _not_text(part: Mapping[str, Any]) -> str | None:
    """What makes a part of a message's content something else than text."""
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        return f"content of the type {kind!r:.40}"
    return next(iter(part.keys() & _MEDIA_KEYS), None)


def _unsupported(param: str, what: str, why: str, where: str = "") -> RouterError:
    return bad_request(f"`{what}` is not supported{where}: {why}.", param, "unsupported_parameter")
