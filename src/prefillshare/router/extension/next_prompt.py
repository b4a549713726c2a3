"""What the next prompt of a conversation will begin with, as far as it is known when a turn ends.

The client sends the conversation back with the answer in it, and the base's chat template renders it again. So this is
a request of the same kind, with the answer as one more message and without the opening of another answer. The prefill
worker renders and tokenises it as it will the next turn's. Where the two differ nothing is wrong: a block is found by
its tokens or not at all.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefillshare.instructions import Placement, split_instructions
from prefillshare.router.call import Call
from prefillshare.router.legs import prefill_body
from prefillshare.router.placement.chunks import BYTES_PER_TOKEN

_MARKUP_TOKENS = 5  # that a chat template puts between two messages, about


def next_prompt(call: Call, base: str, placement: Placement, choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body for a prefill worker, which keeps the blocks in its cache and holds none of them for a decode worker.

    None when it cannot be known how the conversation goes on.
    """
    if call.endpoint == "completions":
        change = _longer_text(call.body.get("prompt"), choice)
    else:
        change = _longer_chat(call.body, placement, choice.get("message") or {})
    if change is None:
        return None
    body = {field: value for field, value in call.body.items() if field != "continue_final_message"}
    # The instructions have been dealt with: those behind the context are not part of what the turns share.
    prompt = prefill_body(replace(call, body=body | change), base)
    del prompt["kv_transfer_params"]
    return prompt


def adds_blocks(call: Call, placement: Placement, prompt_tokens: int, output_tokens: int, block_size: int) -> bool:
    """Whether the answer reaches into a block after those that the turn's own prompt has left in the cache.

    An estimate: for modules whose instructions stand behind the context nobody has counted the context's tokens.
    """
    start, added = prompt_tokens, output_tokens
    if placement == "behind_context" and "messages" in call.body:
        instructions, _ = split_instructions(call.body["messages"])
        text = "".join(str(message.get("content") or "") for message in instructions)
        start -= len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN + _MARKUP_TOKENS
        added += _MARKUP_TOKENS
    return (start + added) // block_size > start // block_size


def _longer_chat(body: Mapping[str, Any], placement: Placement, message: Mapping[str, Any]) -> dict[str, Any] | None:
    content, tool_calls = message.get("content"), message.get("tool_calls")
    if not content and not tool_calls:
        return None
    messages = list(body["messages"])
    if placement == "behind_context":
        _, messages = split_instructions(messages)
    if body.get("continue_final_message"):
        begun = messages.pop().get("content")
        if not isinstance(begun, str):
            return None
        content = begun + (content or "")
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    if tool_calls:
        answer["tool_calls"] = tool_calls
    return {"messages": [*messages, answer], "add_generation_prompt": False}


def _longer_text(prompt: object, choice: Mapping[str, Any]) -> dict[str, Any] | None:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        (prompt,) = prompt
    if isinstance(prompt, str):
        return {"prompt": prompt + str(choice.get("text") or "")}
    if isinstance(prompt, list) and (token_ids := choice.get("token_ids")):
        return {"prompt": [*prompt, *token_ids]}
    return None  # token ids, and the client has not asked for those of the answer
