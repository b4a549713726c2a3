"""A queue that is fair to its keys: each gets the same share of tokens, however many calls it has sent.

Start-time fair queueing (Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996). The calls of a key are served in
order, unless who serves prefers some of them; among the keys comes the one whose first call has the lowest start tag. A
call's tag is the tag of the key's call before it plus that call's tokens by the key's weight, and at least the tag of
the call served last in the whole queue: a key that was away has saved nothing up. Only the first call of a key has a
tag here, so one that leaves the queue unserved costs its key nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Generic, TypeVar

LOOKED_AT = 32  # of a key's calls, for a preferred one: a long queue must not make every look at it long

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[Item]):
    key: str
    tokens: int
    item: Item
    stays: bool = False  # whatever the queue's limits are


@dataclass(slots=True)
class _Line(Generic[Item]):
    """The waiting calls of one key, of which there is at least one."""

    start: float  # tag of the first
    turn: int  # of lines with the same tag, the one that began earlier, or was served longer ago, comes first
    entries: deque[Entry[Item]] = field(default_factory=deque)
    tokens: int = 0


class Shares:
    """The start tags of keys that share something beside their queue, which calls of other queues wait for, too.

    Where who is first by them cannot be served, for want of something else, others are, and the clock goes on. A key
    has saved nothing up by that: its tag is never behind the clock.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._clock = 0.0
        self._next: dict[str, float] = {}  # tags that are ahead of the clock

    def tag(self, key: str) -> float:
        return self._next.get(key, self._clock)

    def serve(self, key: str, tokens: int) -> None:
        self._clock = self.tag(key)
        self._next[key] = self._clock + tokens / self._weights.get(key, 1.0)
        self._next = {key: tag for key, tag in self._next.items() if tag > self._clock}


class FairQueue(Generic[Item]):
    def __init__(self, weights: Mapping[str, float] | None = None, turns: Iterator[int] | None = None) -> None:
        """`weights` are the keys' shares; 1 for a key that is not in it. Queues with one `turns` share it."""
        self._weights = weights or {}
        self._lines: dict[str, _Line[Item]] = {}
        self._clock = 0.0  # the start tag of the call served last
        self._finished: dict[str, float] = {}  # of keys that are served but do not wait: where their next tag begins
        self._turns = count() if turns is None else turns
        self._staying = 0  # calls that stay: few queues have any, and limits are asked for with every call that waits

    def __len__(self) -> int:
        return sum(len(line.entries) for line in self._lines.values())

    def __iter__(self) -> Iterator[Entry[Item]]:
        return (entry for line in self._lines.values() for entry in line.entries)

    @property
    def tokens(self) -> int:
        return sum(line.tokens for line in self._lines.values())

    def calls_of(self, key: str) -> int:
        return len(self._lines[key].entries) if key in self._lines else 0

    def tokens_of(self, key: str) -> int:
        return self._lines[key].tokens if key in self._lines else 0

    def push(self, key: str, tokens: int, item: Item, *, stays: bool = False) -> Entry[Item]:
        line = self._lines.get(key)
        if line is None:
            start = max(self._clock, self._finished.pop(key, 0.0))
            line = self._lines[key] = _Line(start, next(self._turns))
        entry = Entry(key, tokens, item, stays)
        line.entries.append(entry)
        line.tokens += tokens
        self._staying += stays
        return entry

    def first(
        self, preferred: Callable[[Item], bool] | None = None, shares: Shares | None = None
    ) -> Entry[Item] | None:
        """Whose turn it is: of the key that is next, the call that came first, or the first `preferred` one.

        With `shares` the next key is that with the lowest tag there, else here. None where nobody waits or, with
        `preferred`, where none of that key's first calls is.
        """
        if not self._lines:
            return None
        tags = {key: shares.tag(key) if shares else max(line.start, self._clock) for key, line in self._lines.items()}
        entries = self._lines[min(tags, key=lambda key: (tags[key], self._lines[key].turn))].entries
        if preferred is None:
            return entries[0]
        return next((entry for entry in islice(entries, LOOKED_AT) if preferred(entry.item)), None)

    def turn(self, entry: Entry[Item]) -> int:
        """When the entry's key was served last or, if it was not, began to wait: a number that counts up, over all
        queues that share `turns`."""
        return self._lines[entry.key].turn

    def serve(self, entry: Entry[Item]) -> None:
        """Takes out what `first` has returned; its key then has had its tokens."""
        line = self._lines[entry.key]
        self._clock = max(line.start, self._clock)  # a key that stood back by `shares` has saved nothing up
        line.start = self._clock + entry.tokens / self._weights.get(entry.key, 1.0)
        line.turn = next(self._turns)
        self.remove(entry)

    def remove(self, entry: Entry[Item]) -> None:
        """Takes out any entry, as if it had never been there."""
        line = self._lines[entry.key]
        line.entries.remove(entry)
        line.tokens -= entry.tokens
        self._staying -= entry.stays
        if not line.entries:
            del self._lines[entry.key]
            self._finished[entry.key] = line.start
        self._finished = {key: tag for key, tag in self._finished.items() if tag > self._clock}

    def ahead_of(self, entry: Entry[Item]) -> int:
        """About how many tokens will be served before this call, the last of its key. Its own size plays no part."""
        key = entry.key
        own = self.tokens_of(key) - entry.tokens
        share = self._weights.get(key, 1.0)
        return own + sum(
            min(line.tokens, line.entries[0].tokens + int(own * self._weights.get(other, 1.0) / share))
            for other, line in self._lines.items()
            if other != key
        )

    def limited(self) -> "FairQueue[Item]":
        """The part to which limits apply: the queue without the calls that stay."""
        if not self._staying:
            return self
        part = FairQueue[Item](self._weights)
        for key, line in self._lines.items():
            if entries := deque(entry for entry in line.entries if not entry.stays):
                part._lines[key] = _Line(line.start, line.turn, entries, sum(entry.tokens for entry in entries))
        return part

    def surplus(self) -> Iterator[Entry[Item]]:
        """The calls to give up when there are too many, one after the other, until every key has but one.

        Each is the newest of the key that has the most tokens left for its weight, of those with several calls; where
        keys have as many, of the one that came last. Whoever floods the queue displaces nobody else (longest queue
        drop: Suter et al., INFOCOM 1998), and the only call of a key is displaced by nobody, however large it is.
        """
        calls = {key: len(line.entries) for key, line in self._lines.items()}
        tokens = {key: line.tokens for key, line in self._lines.items()}

        def rank(key: str) -> tuple[float, int]:
            return tokens[key] / self._weights.get(key, 1.0), self._lines[key].turn

        while several := [key for key in calls if calls[key] > 1]:
            key = max(several, key=rank)
            calls[key] -= 1
            entry = self._lines[key].entries[calls[key]]
            tokens[key] -= entry.tokens
            yield entry

    def heads(self) -> Iterator[Entry[Item]]:
        """The first call of every key."""
        return (line.entries[0] for line in self._lines.values())
