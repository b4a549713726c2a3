"""Who paid for the base KV that a call reused.

A prefill worker's cache keeps whole blocks, each identified by all tokens up to its end. The router keeps the same
chain of hashes, per worker, and beside each block the model whose call had the base compute it.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prefillshare.router.placement.chunks import Chain

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

    def __init__(self, max_blocks: int = MAX_BLOCKS_PER_WORKER) -> None:
        self._max_blocks = max_blocks
        self._payers: dict[str, OrderedDict[bytes, str]] = {}

    def record(self, worker: str, model: str, prompt: Chain, cached_tokens: int) -> Attribution:
        """Attributes a call that found `cached_tokens` in the cache of `worker`; `model` has paid for the rest.

        `prompt` is in blocks of the worker's cache (`chain_of_tokens`).
        """
        payers = self._payers.setdefault(worker, OrderedDict())
        block_size = prompt.chunk_tokens
        cached_blocks = cached_tokens // block_size
        paid_by: dict[str, int] = {}
        for index, block in enumerate(prompt.hashes):
            if index >= cached_blocks:
                payers[block] = model
            elif payer := payers.get(block):
                paid_by[payer] = paid_by.get(payer, 0) + block_size
            if block in payers:
                payers.move_to_end(block)
        while len(payers) > self._max_blocks:
            payers.popitem(last=False)
        from_others = sum(tokens for payer, tokens in paid_by.items() if payer != model)
        return Attribution(prompt.tokens, prompt.tokens - cached_tokens, cached_tokens, from_others, paid_by)

    def forget(self, worker: str) -> None:
        """The worker has left. One of that name that joins later begins with an empty cache."""
        self._payers.pop(worker, None)
