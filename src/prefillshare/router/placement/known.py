"""Which prefixes a worker has probably cached, going by the prompts that it was sent."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

# A chunk that more prompts than this have gone on from, each in its own way, is what many conversations begin with.
# One conversation branches too: several roles, each with instructions of its own behind the context, and retries.
COMMON = 4


class Match(NamedTuple):
    chunks: int  # how many of the chain's first chunks are known
    own: bool  # few prompts have gone on from there


class KnownPrefixes:
    """Chains of chunk hashes, each hash over everything up to its chunk's end; of at most `max_tokens` tokens.

    The longest unused chunks are forgotten first, and of one prompt the last chunk first: like that of a vLLM worker,
    this memory loses prefixes from their ends. So a chunk that is known has all chunks before it known as well.

    With `max_tokens` as large as the worker's cache, that is about what the worker has; with a larger one, what it has
    evicted is still known here. Where that is prefilled costs the same, and afterwards the worker that was chosen has
    it again.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._branches: OrderedDict[bytes, int] = OrderedDict()  # the chunks, with how many others came next
        self._lengths: dict[bytes, int] = {}  # in tokens, as the prompt said that brought them
        self._tokens = 0

    @property
    def tokens(self) -> int:
        return self._tokens

    def limit(self, max_tokens: int) -> None:
        """Remembers at most so many from here on."""
        self._max_tokens = max_tokens
        self._forget_what_is_too_much()

    def longest(self, chain: Sequence[bytes]) -> Match:
        branches, known, unknown = self._branches, 0, len(chain)
        while known < unknown:  # bisection: this is asked of every worker for every call
            middle = (known + unknown) // 2
            if chain[middle] in branches:
                known = middle + 1
            else:
                unknown = middle
        return Match(known, known > 0 and branches[chain[known - 1]] <= COMMON)

    def add(self, chain: Sequence[bytes], chunk_tokens: int = 1) -> None:
        """A prompt of such chunks was sent."""
        branches, known = self._branches, self.longest(chain).chunks
        if 0 < known < len(chain):
            branches[chain[known - 1]] += 1
        for chunk in reversed(chain[known:]):
            branches[chunk] = 1
            self._lengths[chunk] = chunk_tokens
        self._tokens += chunk_tokens * (len(chain) - known)
        if known < len(chain):
            branches[chain[-1]] = 0
        for chunk in reversed(chain[:known]):
            branches.move_to_end(chunk)
        self._forget_what_is_too_much()

    def _forget_what_is_too_much(self) -> None:
        while self._tokens > self._max_tokens:
            chunk, _ = self._branches.popitem(last=False)
            self._tokens -= self._lengths.pop(chunk)
