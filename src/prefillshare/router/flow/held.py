"""How much KV the calls in flight need on each worker, where what their prompts share is counted once."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prefillshare.router.placement.chunks import Chain
from prefillshare.router.pool import Worker


@dataclass(slots=True)
class _Chunk:
    tokens: int
    calls: int = 0  # whose prompts have it


@dataclass(slots=True)
class _Held:
    """On one worker."""

    chunks: dict[bytes, _Chunk] = field(default_factory=dict)
    tokens: int = 0
    calls: int = 0

    def known(self, hashes: Sequence[bytes]) -> int:
        """How many of the first chunks are held. Who holds one holds all before it, so bisection finds the last."""
        return bisect_right(hashes, False, key=lambda chunk: chunk not in self.chunks)


class HeldKV:
    """In tokens: of prompts and answers on decode workers, on prefill workers of prompts until they have been pulled.

    Workers keep a block once, however many calls read it. So a call adds only the chunks that no other call there has,
    and what is its own: the end of its prompt, behind the last whole chunk, and `more`.

    How long a chunk of token ids is, is an estimate, and two prompts may differ on it; it counts as the first one said
    until the last one has gone.
    """

    def __init__(self, limit: Callable[[Worker], int | None]) -> None:
        """`limit` says how many tokens may be held on a worker, None where nobody knows. It may change at any time."""
        self._limit = limit
        self._workers: dict[Worker, _Held] = {}  # those on which something is held

    def tokens(self, worker: Worker) -> int:
        held = self._workers.get(worker)
        return held.tokens if held else 0

    def has_room(self, worker: Worker, prompt: Chain, more: int = 0) -> bool:
        """Where nothing is held there is room for any prompt, and where no limit is known, always."""
        held, limit = self._workers.get(worker), self._limit(worker)
        if held is None or limit is None:
            return True
        new = len(prompt.hashes) - held.known(prompt.hashes)
        return held.tokens + new * prompt.chunk_tokens + _behind_chunks(prompt) + more <= limit

    def hold(self, worker: Worker, prompt: Chain, more: int = 0) -> Callable[[], None]:
        """Counts a call until what is returned is called, once."""
        held = self._workers.setdefault(worker, _Held())
        own = _behind_chunks(prompt) + more
        held.calls += 1
        held.tokens += own
        for name in prompt.hashes:
            chunk = held.chunks.get(name)
            if chunk is None:
                chunk = held.chunks[name] = _Chunk(prompt.chunk_tokens)
                held.tokens += chunk.tokens
            chunk.calls += 1

        def release() -> None:
            held.calls -= 1
            held.tokens -= own
            for name in prompt.hashes:
                chunk = held.chunks[name]
                chunk.calls -= 1
                if not chunk.calls:
                    held.tokens -= chunk.tokens
                    del held.chunks[name]
            if not held.calls:
                del self._workers[worker]

        return release


def _behind_chunks(prompt: Chain) -> int:
    return prompt.tokens - prompt.length(len(prompt.hashes))
