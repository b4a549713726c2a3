"""The handoff as data: what a prefill worker says of a prompt's KV, sealed, and why a worker refuses to go by it.

A decode worker reads the memory that the parameters name. Were they wrong, it would read another session's KV and
answer from it without an error. So the prefill worker adds a digest of the prompt and seals it all with a key that only
the deployment's workers have; a decode worker takes nothing whose seal or prompt does not match.
"""

import hashlib
import hmac
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal[
    "no_handoff",
    "malformed_handoff",
    "forged_handoff",
    "wrong_prompt",
    "used_handoff",
    "local_prefill_asked",
    "grammar_failed",
    "unknown_token",
    "another_base",
    "pull_failed",
    "lease_expired",
    "preempted",
]

# The HTTP status that says whose turn it is: at 400 the request is wrong and stays so; at 503 the KV is lost, and
# another prefill brings it back.
STATUS: dict[Reason, int] = {
    "no_handoff": 400,
    "malformed_handoff": 400,
    "forged_handoff": 400,
    "wrong_prompt": 400,
    "used_handoff": 400,
    "local_prefill_asked": 400,
    "grammar_failed": 400,
    "unknown_token": 400,
    "another_base": 503,
    "pull_failed": 503,
    "lease_expired": 503,
    "preempted": 503,
}

HANDOFF_KEY_VARIABLE = "PREFILLSHARE_HANDOFF_KEY"
PROMPT = "prompt_digest"
SEAL = "seal"
DEADLINE = "remote_blocks_expiry_time"  # NIXL's name; on the prefill worker's monotonic clock, in seconds

_FIELDS: dict[str, type] = {
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "remote_block_ids": list,
    "remote_num_tokens": int,
    "tp_size": int,
    "dcp_size": int,
    "pp_size": int,
    DEADLINE: float,
    PROMPT: str,
    SEAL: str,
}
_SEALED = sorted(_FIELDS.keys() - {SEAL})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a worker does not serve a request. `reason` is for programs, `message` for people."""

    reason: Reason
    message: str


def seal(params: dict[str, Any], prompt_ids: Sequence[int], deadline: float, key: str) -> dict[str, Any]:
    """A prefill worker's parameters with what makes them its word on this prompt.

    `deadline` is when it gives up the blocks, on its monotonic clock in seconds.
    """
    full = {**params, DEADLINE: deadline, PROMPT: _digest(prompt_ids)}
    return {**full, SEAL: _seal(full, key)}


def _seal(params: dict[str, Any], key: str) -> str:
    content = json.dumps([params[name] for name in _SEALED]).encode()
    return hmac.new(key.encode(), content, hashlib.sha256).hexdigest()


def _digest(prompt_ids: Sequence[int]) -> str:
    return hashlib.sha256(array("q", prompt_ids).tobytes()).hexdigest()


def prefill_refusal(params: Any) -> Refusal | None:
    """Why a prefill worker must not take a request with these transfer parameters; None when it may."""
    if params is None:
        return None
    if not isinstance(params, dict):
        return Refusal("malformed_handoff", f"kv_transfer_params must be an object, found {type(params).__name__}")
    if params.get("do_remote_prefill") or params.get("remote_block_ids"):
        return Refusal(
            "malformed_handoff",
            "a prefill worker computes prompts itself and takes no KV: do_remote_prefill must be false and "
            "remote_block_ids empty",
        )
    return None


def decode_refusal(params: Any) -> Refusal | None:
    """Why a decode worker must not take a request with these transfer parameters; None when they are well formed."""
    if not isinstance(params, dict) or params.get("do_remote_prefill") is not True or params.get("do_remote_decode"):
        return Refusal("no_handoff", "it does not come from a prefill worker, and a decode worker never prefills")
    for name, kind in _FIELDS.items():
        if not isinstance(params.get(name), kind) or isinstance(params[name], bool):
            return Refusal(
                "malformed_handoff",
                f"kv_transfer_params.{name} must be {kind.__name__}, found {type(params.get(name)).__name__}",
            )
    if not all(
        isinstance(group, list) and all(type(block) is int and block >= 0 for block in group)
        for group in params["remote_block_ids"]
    ):
        return Refusal("malformed_handoff", "kv_transfer_params.remote_block_ids must be lists of block numbers")
    return None


def seal_refusal(params: dict[str, Any], key: str) -> Refusal | None:
    """Why well-formed parameters are not a prefill worker's word; None when they are."""
    if hmac.compare_digest(_seal(params, key).encode(), params[SEAL].encode()):
        return None
    return Refusal(
        "forged_handoff",
        "the seal does not match: kv_transfer_params were changed on their way, or the workers' "
        f"{HANDOFF_KEY_VARIABLE} differ",
    )


def token_refusal(prompt_ids: Sequence[int], vocabulary: int) -> Refusal | None:
    """Why a model whose embedding has `vocabulary` rows cannot read the prompt; None when it can.

    vLLM takes every token that the tokenizer knows, and some know more than their model has an embedding for (Gemma 3's
    know image tokens, its text models do not). Computing one would end the engine, or read a row that means nothing.
    """
    highest = max(prompt_ids, default=0)
    if highest < vocabulary:
        return None
    return Refusal(
        "unknown_token",
        f"the prompt has the token {highest}, which the tokenizer knows and the model does not: it has {vocabulary} "
        "tokens, from 0 on; leave that token, or the text that stands for it, out of the prompt",
    )


def prompt_refusal(params: dict[str, Any], prompt_ids: Sequence[int], block_size: int) -> Refusal | None:
    """Why the handoff is not that of exactly this prompt; None when it is."""
    if params["remote_num_tokens"] != len(prompt_ids) or params[PROMPT] != _digest(prompt_ids):
        return Refusal(
            "wrong_prompt",
            f"the prefill worker computed another prompt, of {params['remote_num_tokens']} tokens; this one has "
            f"{len(prompt_ids)}",
        )
    needed = -(-len(prompt_ids) // block_size)
    found = [len(group) for group in params["remote_block_ids"]]
    if found != [needed]:
        return Refusal(
            "malformed_handoff",
            f"{len(prompt_ids)} tokens are [{needed}] blocks of {block_size}, the handoff has {found}",
        )
    return None
