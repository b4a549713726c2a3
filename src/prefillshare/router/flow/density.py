"""How many bytes of a request make a token of its prompt: learned from prompts that workers have tokenized.

The router has no tokenizer, and texts differ: English has some five bytes a token with one vocabulary and four with
another, code fewer, Chinese fewer still. An estimate that is too high keeps room empty while calls wait for it; one
that is too low lets more calls in than fit.
"""

from collections import deque
from weakref import WeakKeyDictionary

from prefillshare.router.placement.chunks import BYTES_PER_TOKEN
from prefillshare.router.pool import Pool

_RECENT = 64  # prompts that are remembered
_PASSED_OVER = 1 / 16  # of these, the densest
_ENOUGH = 8  # below that, more bytes a token than what is taken for English are not believed
_LEAST_BYTES = 1024  # of shorter prompts the chat template is too large a part
# Hardly any text has more. Whoever sends much that a template leaves out must not have prompts let in for next to
# nothing afterwards.
_MOST = 8.0


class Density:
    """By prefill pool, whose base has one tokenizer, and by tenant: whose texts are dense takes no room of the others.

    The densest of recent prompts count, but for one in sixteen. So a tenant with several kinds of text has room kept
    for the one that needs most, and a prompt like no other keeps no room empty. What an estimate falls short by is
    counted when the prompt has been tokenized.
    """

    def __init__(self) -> None:
        self._recent: WeakKeyDictionary[Pool, dict[str, deque[float]]] = WeakKeyDictionary()

    def of(self, pool: Pool, tenant: str) -> float:
        """Bytes a token, at least 1."""
        recent = sorted(self._recent.get(pool, {}).get(tenant, ()))
        known = recent[int(len(recent) * _PASSED_OVER)] if recent else BYTES_PER_TOKEN
        return known if len(recent) >= _ENOUGH else min(known, BYTES_PER_TOKEN)

    def known(self, pool: Pool) -> dict[str, float]:
        """By tenant, what is taken for those of whom a prompt has been seen."""
        return {tenant: self.of(pool, tenant) for tenant in self._recent.get(pool, {})}

    def saw(self, pool: Pool, tenant: str, size: float, tokens: int) -> None:
        """A prompt of `size` bytes was made into so many tokens."""
        if size >= _LEAST_BYTES and tokens > 0:
            of_pool = self._recent.setdefault(pool, {})
            of_pool.setdefault(tenant, deque(maxlen=_RECENT)).append(min(max(size / tokens, 1.0), _MOST))
