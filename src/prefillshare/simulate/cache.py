"""The KV memory of a worker: blocks in use, and blocks that are kept for prompts which begin in the same way.

A block of its own for each piece of each prompt would cost more time than all else in a simulation. But a session's
context only grows, so what a worker holds of it is always a beginning: one number. A prompt is therefore a row of
*stretches*, each a key and its length in blocks: what all sessions begin with, the session's own context, and behind it
what no other prompt has.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

Stretch = tuple[Hashable, int]  # what it is, blocks


class PrefixCache:
    """Blocks of a fixed number. Those that no running prompt uses are evicted as in vLLM: the longest unused prompts
    first, and of one prompt the last block first."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.free = blocks
        self.idle_blocks = 0  # cached and in nobody's use
        self._held: dict[Hashable, int] = {}  # blocks of each stretch
        self._users: dict[Hashable, int] = {}  # running prompts with the stretch
        self._idle: OrderedDict[Hashable, None] = OrderedDict()
        self.peak_in_use = 0

    @property
    def in_use(self) -> int:
        return self.blocks - self.free - self.idle_blocks

    def take(self, stretches: Sequence[Stretch], private: int) -> int | None:
        """Gives a prompt its blocks, and `private` ones that nobody else will find.

        Returns:
            How many of the prompt's first blocks were there already; None if there is no room now (nothing is changed).
        """
        held, idle, users = self._held, self._idle, self._users
        found, complete, need, room = 0, True, private, self.free + self.idle_blocks
        for key, blocks in stretches:
            there = held.get(key, 0)
            if complete:
                found += min(there, blocks)
                complete = there >= blocks
            need += max(0, blocks - there)
            if key in idle:
                room -= there
        if need > room:
            return None
        for key, _ in stretches:
            if key in idle:
                del idle[key]
                self.idle_blocks -= held[key]
            users[key] = users.get(key, 0) + 1
        if need > self.free:
            self._evict(need - self.free)
        self.free -= need
        for key, blocks in stretches:
            if held.get(key, 0) < blocks:
                held[key] = blocks
        self.peak_in_use = max(self.peak_in_use, self.in_use)
        return found

    def release(self, stretches: Sequence[Stretch], private: int) -> None:
        """Takes back what `take` gave. The prompt's own blocks stay until their room is needed."""
        self.free += private
        for key, _ in reversed(stretches):
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                if blocks := self._held.get(key, 0):
                    self._idle[key] = None
                    self.idle_blocks += blocks

    def _evict(self, blocks: int) -> None:
        self.free += blocks
        self.idle_blocks -= blocks
        while blocks:
            key, _ = self._idle.popitem(last=False)
            there = self._held[key]
            if there > blocks:
                self._held[key] = there - blocks
                self._idle[key] = None
                self._idle.move_to_end(key, last=False)
                return
            del self._held[key]
            blocks -= there
