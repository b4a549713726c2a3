"""Who paid for the base KV that a call reused.

A prefill worker's cache keeps whole blocks, each identified by all tokens up to its end. The router keeps the same
chain of hashes, per worker, and beside each block the model whose call had the base compute it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from prefillshare.router.fast_json import to_json

MAX_BLOCKS_PER_WORKER = 100_000  # about 15 MB; 12.8 million tokens at 128 tokens a block


@dataclass(frozen=True, slots=True)
class Attribution:
    """Tokens of one call's prompt; computed + reused = prompt."""

    prompt: int
    computed: int  # the base had to compute them
    reused: int  # found in the prefill worker's cache
    reused_from_others: int  # of the reused: in blocks that another model's call had paid for
    # Of the reused: by the model whose call had paid, the caller's own model too. Blocks without a known payer are not
    # in it.
    payers: Mapping[str, int] = field(default_factory=dict, compare=False)


class Ledger:
    """Block payers of every prefill worker, and so apart for each base: a worker runs one, and has a name of its own.

    A block that has left this ledger (or was cached before the router started) has no known payer and counts as
    reused, not as reused from others: the figure is a lower bound.
    """

    def __init__(self, block_size: int, max_blocks: int = MAX_BLOCKS_PER_WORKER) -> None:
        self._block_size = block_size
        self._max_blocks = max_blocks
        self._payers: dict[str, OrderedDict[bytes, str]] = {}

    def record(
        self, worker: str, model: str, prompt_token_ids: Sequence[int], cached_tokens: int, salt: str | None = None
    ) -> Attribution:
        """Attributes a call that found `cached_tokens` in the cache of `worker`; `model` has paid for the rest.

        As in the worker's cache, blocks under one `salt` are not those under another.
        """
        payers = self._payers.setdefault(worker, OrderedDict())
        cached_blocks = cached_tokens // self._block_size
        paid_by: dict[str, int] = {}
        for index, block in enumerate(block_hashes(prompt_token_ids, self._block_size, salt)):
            if index >= cached_blocks:
                payers[block] = model
            elif payer := payers.get(block):
                paid_by[payer] = paid_by.get(payer, 0) + self._block_size
            if block in payers:
                payers.move_to_end(block)
        while len(payers) > self._max_blocks:
            payers.popitem(last=False)
        prompt = len(prompt_token_ids)
        from_others = sum(tokens for payer, tokens in paid_by.items() if payer != model)
        return Attribution(prompt, prompt - cached_tokens, cached_tokens, from_others, paid_by)

    def forget(self, worker: str) -> None:
        """The worker has left. One of that name that joins later begins with an empty cache."""
        self._payers.pop(worker, None)


def block_hashes(token_ids: Sequence[int], block_size: int, salt: str | None = None) -> Sequence[bytes]:
    """One hash for each whole block, over the block's tokens and the hash before it; the salt is before the first."""
    global _last
    known = _last
    if known.token_ids is token_ids and (known.block_size, known.salt) == (block_size, salt):
        return known.hashes
    hashes, previous = [], (salt or "").encode()
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        # As JSON: orjson writes it five times faster than `array` makes integers of a list.
        block = to_json(list(token_ids[start : start + block_size]))
        previous = blake2b(previous + block, digest_size=16).digest()
        hashes.append(previous)
    _last = _Hashed(token_ids, block_size, salt, hashes)
    return hashes


class _Hashed(NamedTuple):
    token_ids: Sequence[int]  # never changed: a prefill worker's answer
    block_size: int
    salt: str | None
    hashes: Sequence[bytes]


# A call's prompt is asked for twice, by the ledger and right after it for placing the decode leg.
_last = _Hashed((), 0, None, ())
