from collections import OrderedDict
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.simulate.cache import PrefixCache, Stretch


@dataclass
class Blocks:
    """The same with every block kept apart, as vLLM does: a reference count each, a queue of those without."""

    free: int
    idle: OrderedDict[tuple, None] = field(default_factory=OrderedDict)
    users: dict[tuple, int] = field(default_factory=dict)

    def take(self, stretches: list[Stretch], private: int) -> int | None:
        wanted = [(key, index) for key, blocks in stretches for index in range(blocks)]
        missing = [block for block in wanted if block not in self.idle and block not in self.users]
        evictable = sum(block not in wanted for block in self.idle)
        if len(missing) + private > self.free + evictable:
            return None
        found = next((index for index, block in enumerate(wanted) if block in missing), len(wanted))
        for block in wanted:
            self.idle.pop(block, None)
            self.users[block] = self.users.get(block, 0) + 1
        while len(missing) + private > self.free:
            self.idle.popitem(last=False)
            self.free += 1
        self.free -= len(missing) + private
        return found

    def release(self, stretches: list[Stretch], private: int) -> None:
        self.free += private
        for block in reversed([(key, index) for key, blocks in stretches for index in range(blocks)]):
            self.users[block] -= 1
            if not self.users[block]:
                del self.users[block]
                self.idle[block] = None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=60))
def test_it_finds_and_evicts_as_a_cache_of_single_blocks(calls: list[tuple[int, int, int, bool]]) -> None:
    cache, blocks = PrefixCache(20), Blocks(20)
    lengths = [0, 0, 0, 0]
    running: list[tuple[list[Stretch], int]] = []
    for number, (session, grows, end, ends) in enumerate(calls):
        lengths[session] += grows
        busy = any(stretch[0] == session for stretches, _ in running for stretch in stretches)
        prompt: list[Stretch] = [("common", 3), (session, lengths[session]), ((session, number), end)]
        if not busy:  # the calls of a session follow each other
            found = cache.take(prompt, 1)
            assert found == blocks.take(prompt, 1)
            if found is not None:
                running.append((prompt, 1))
        if ends and running:
            for memory in (cache, blocks):
                memory.release(*running[0])
            running.pop(0)
        assert (cache.free, cache.idle_blocks) == (blocks.free, len(blocks.idle))
        assert cache.in_use == len(blocks.users) + len(running)
        assert 0 <= cache.free <= cache.blocks


def test_the_longest_unused_session_goes_first_and_from_its_end() -> None:
    cache = PrefixCache(10)
    for session in ("a", "b"):
        assert cache.take([(session, 5)], 0) == 0
        cache.release([(session, 5)], 0)
    assert cache.take([("c", 2)], 0) == 0
    cache.release([("c", 2)], 0)
    assert [cache.take([(session, 5)], 0) for session in ("b", "a")] == [5, 3]


def test_who_has_lost_something_is_still_the_first_to_lose_more() -> None:
    cache = PrefixCache(10)
    for session, blocks in (("a", 5), ("b", 5), ("c", 2), ("d", 2)):
        assert cache.take([(session, blocks)], 0) == 0
        cache.release([(session, blocks)], 0)
    assert [cache.take([(session, 5)], 0) for session in ("b", "a")] == [5, 1]


def test_what_stands_behind_a_gap_is_not_found() -> None:
    cache = PrefixCache(10)
    cache.take([("a", 3)], 0)
    assert cache.take([("b", 1), ("a", 3)], 0) == 0


def test_a_full_cache_says_so_and_changes_nothing() -> None:
    cache = PrefixCache(10)
    assert cache.take([("a", 6)], 2) == 0
    assert cache.take([("b", 3)], 0) is None
    assert (cache.in_use, cache.free) == (8, 2)
    cache.release([("a", 6)], 2)
    assert (cache.take([("b", 3)], 0), cache.take([("a", 6)], 1)) == (0, 6)


@pytest.mark.parametrize("blocks", [0, 4])
def test_more_than_there_is_never_fits(blocks: int) -> None:
    assert PrefixCache(blocks).take([("a", blocks + 1)], 0) is None
