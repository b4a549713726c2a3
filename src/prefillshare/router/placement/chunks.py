"""A prompt as a chain of hashes, so that a common prefix of two prompts is a common beginning of their chains.

The router has no tokenizer. Before leg 1 it cuts the request itself: what the chat template renders before the
messages, then the messages, as JSON. Equal requests render equally, so a common prefix there is one in tokens too, give
or take a chunk. Leg 1 returns the token ids, and the decode leg's chain is over blocks of those.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import ceil
from typing import Any, NamedTuple

from prefillshare.router.fast_json import to_json

CHUNK_BYTES = 256
BYTES_PER_TOKEN = 4  # of English text, about
CHUNK_TOKENS = CHUNK_BYTES // BYTES_PER_TOKEN

# What comes before the messages in a prompt, or changes how they are rendered.
_BEFORE = ("tools", "documents", "chat_template_kwargs", "reasoning_effort", "add_special_tokens")


class Chain(NamedTuple):
    """A prompt of about `tokens` tokens. `hashes` has one for each whole chunk of `chunk_tokens`."""

    hashes: Sequence[bytes]
    tokens: int
    chunk_tokens: int

    def length(self, chunks: int) -> int:
        """Tokens in the first `chunks` chunks."""
        return min(chunks * self.chunk_tokens, self.tokens)


def chain_of_request(body: Mapping[str, Any], bytes_per_token: float = BYTES_PER_TOKEN) -> Chain:
    """For a prefill body: the instructions of the role are where the prompt has them, so roles share what they can.

    `bytes_per_token` is for text; token ids are as many as they are.

    Chains under one `cache_salt` have nothing in common with those under another, as in the workers' caches.
    """
    before = before_messages(body)
    prompt = body["messages"] if "messages" in body else body.get("prompt")
    text = canonical(before) + canonical(prompt)
    hashes, previous = [], (body.get("cache_salt") or "").encode()
    for start in range(0, len(text) - CHUNK_BYTES + 1, CHUNK_BYTES):
        previous = blake2b(previous + text[start : start + CHUNK_BYTES], digest_size=16).digest()
        hashes.append(previous)
    if isinstance(prompt, list) and "messages" not in body and len(prompt) > 1:  # token ids
        per_chunk = max(1, len(prompt) * CHUNK_BYTES // len(text))
        return Chain(hashes, len(prompt), per_chunk)
    return Chain(hashes, ceil(len(text) / bytes_per_token), max(1, round(CHUNK_BYTES / bytes_per_token)))


def before_messages(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that decide what stands in front of its messages."""
    return {field: body[field] for field in _BEFORE if body.get(field) is not None}


def chain_of_tokens(token_ids: Sequence[int], block_size: int, salt: str | None = None) -> Chain:
    """Over whole blocks of a worker's KV cache. Under one salt they are not those under another, as in that cache."""
    return Chain(block_hashes(token_ids, block_size, salt), len(token_ids), block_size)


def block_hashes(token_ids: Sequence[int], block_size: int, salt: str | None = None) -> Sequence[bytes]:
    """One hash for each whole block, over the block's tokens and the hash before it; the salt is before the first."""
    hashes, previous = [], (salt or "").encode()
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        # As JSON: orjson writes it five times faster than `array` makes integers of a list.
        block = to_json(list(token_ids[start : start + block_size]))
        previous = blake2b(previous + block, digest_size=16).digest()
        hashes.append(previous)
    return hashes


def canonical(value: object) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
