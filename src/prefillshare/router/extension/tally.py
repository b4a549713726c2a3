"""What extensions computed, and what came of it, block by block."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from prefillshare.router.placement.chunks import Chain

KEPT_S = 600.0  # a block that no prompt has used by then is counted as wasted; a later use is counted as nothing
MAX_BLOCKS = 100_000


class Extended(NamedTuple):
    model: str  # whose turn had ended
    at: float


class Tally:
    """Blocks that were computed ahead and not used yet, of all prefill workers.

    `wasted(model, tokens)` is called for tokens that were computed for nothing, as soon as that is known.
    """

    def __init__(
        self, block_size: int, wasted: Callable[[str, int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._block_size = block_size
        self._wasted = wasted
        self._clock = clock
        self._blocks: OrderedDict[tuple[str, bytes], Extended] = OrderedDict()

    def extended(self, worker: str, model: str, prompt: Chain, cached: int) -> int:
        """How many of the tokens were computed. What lies behind the last whole block is not kept, and so wasted."""
        self._forget_old()
        now = self._clock()
        for index, block in enumerate(prompt.hashes):
            if index >= cached // self._block_size:
                self._blocks[worker, block] = Extended(model, now)
        self._wasted(model, prompt.tokens % self._block_size)
        return prompt.tokens - cached

    def used(self, worker: str, prompt: Chain, cached: int) -> int:
        """Of a prompt's tokens those that it found because they had been computed ahead; each block counts once.

        Afterwards a prompt would find it anyway: this one would have had it computed.
        """
        if not self._blocks:
            return 0
        hits = 0
        for index, block in enumerate(prompt.hashes):
            extended = self._blocks.pop((worker, block), None)
            if extended is None:
                continue
            if index < cached // self._block_size:
                hits += self._block_size
            else:  # evicted, or not computed yet
                self._wasted(extended.model, self._block_size)
        return hits

    def _forget_old(self) -> None:
        oldest = self._clock() - KEPT_S
        while self._blocks and (len(self._blocks) > MAX_BLOCKS or next(iter(self._blocks.values())).at < oldest):
            _, extended = self._blocks.popitem(last=False)
            self._wasted(extended.model, self._block_size)
