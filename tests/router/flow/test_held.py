from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.flow.held import HeldKV
from prefillshare.router.placement.chunks import CHUNK_TOKENS, Chain, chain_of_request, chain_of_tokens
from tests.router.fakes import decode_worker

A, B = decode_worker("a"), decode_worker("b")
BLOCK = 4


def limited(tokens: int) -> HeldKV:
    return HeldKV({A: tokens}.get)


def prompt(*ids: int) -> Chain:
    return chain_of_tokens(ids, BLOCK)


def test_kv_takes_room_until_it_is_released() -> None:
    held = limited(100)
    release = held.hold(A, prompt(*range(58)), 2)
    assert (held.tokens(A), held.tokens(B)) == (60, 0)
    assert held.has_room(A, prompt(), 40)
    assert not held.has_room(A, prompt(), 41)
    assert held.has_room(B, prompt(), 10**9)  # nobody knows its limit
    release()
    assert held.tokens(A) == 0
    assert held.has_room(A, prompt(), 101)  # alone


def test_a_common_prefix_takes_room_once() -> None:
    held = limited(20)
    held.hold(A, prompt(1, 2, 3, 4, 5, 6, 7, 8, 9), 1)
    assert held.tokens(A) == 10
    assert held.has_room(A, prompt(1, 2, 3, 4, 5, 6, 7, 8, 0, 0), 8)  # two tokens of its own, and eight
    assert not held.has_room(A, prompt(1, 2, 3, 4, 5, 6, 7, 8, 0, 0), 9)
    assert not held.has_room(A, prompt(0, 2, 3, 4, 5, 6, 7, 8, 0, 0), 8)  # the same behind another beginning
    held.hold(A, prompt(1, 2, 3, 4, 5, 6, 7, 8, 0, 0), 3)
    assert held.tokens(A) == 15


def test_workers_share_nothing_with_each_other() -> None:
    held = limited(20)
    held.hold(A, prompt(*range(16)))
    held.hold(B, prompt(*range(16)))
    assert held.tokens(A) == held.tokens(B) == 16


def test_what_is_shared_goes_with_its_last_call() -> None:
    held = limited(20)
    first, second = (held.hold(A, prompt(1, 2, 3, 4, 5, 6, 7, 8), more) for more in (1, 2))
    assert held.tokens(A) == 11
    first()
    assert held.tokens(A) == 10
    second()
    assert held.tokens(A) == 0


def test_the_limit_may_change() -> None:
    limits = {A: 10}
    held = HeldKV(limits.get)
    held.hold(A, prompt(), 10)
    assert not held.has_room(A, prompt(), 1)
    limits[A] = 11
    assert held.has_room(A, prompt(), 1)
    del limits[A]
    assert held.has_room(A, prompt(), 10**9)


def test_the_same_text_twice_needs_its_chunks_once() -> None:
    held = limited(10**6)
    chain = chain_of_request({"prompt": "word " * 1000})
    held.hold(A, chain)
    assert held.tokens(A) == chain.tokens
    held.hold(A, chain)
    assert held.tokens(A) - chain.tokens == chain.tokens % CHUNK_TOKENS


def test_prompts_that_say_differently_how_long_a_chunk_is_leave_nothing_behind() -> None:
    held = limited(100)
    held.hold(A, prompt(), 50)
    chunks = prompt(*range(8)).hashes
    first = held.hold(A, Chain(chunks, 8, 4))
    second = held.hold(A, Chain(chunks, 7, 3))
    assert held.tokens(A) == 50 + 9  # eight, and the one behind the second's chunks
    first()
    assert held.tokens(A) == 50 + 9
    second()
    assert held.tokens(A) == 50


CALL = st.tuples(st.sampled_from([A, B]), st.lists(st.integers(0, 1), max_size=20), st.integers(0, 30))


@given(st.lists(st.one_of(CALL, st.integers(0, 30))))
def test_distinct_chunks_and_what_is_each_calls_own_are_held_in_any_order(steps: list) -> None:  # type: ignore[type-arg]
    """A step is a call that comes, or the number of one that goes. `more` may be anything."""
    held = limited(60)
    live: list[tuple[object, Chain, int, Callable[[], None]]] = []
    for step in [*steps, *[0] * len(steps)]:
        if isinstance(step, tuple):
            worker, ids, more = step
            chain = prompt(*ids)
            room = held.has_room(worker, chain, more)
            idle = all(other is not worker for other, *_ in live)
            live.append((worker, chain, more, held.hold(worker, chain, more)))
            assert room == (worker is B or idle or held.tokens(worker) <= 60)
        elif live:
            live.pop(step % len(live))[3]()
        for worker in (A, B):
            mine = [(chain, more) for where, chain, more, _ in live if where is worker]
            chunks = {chunk for chain, _ in mine for chunk in chain.hashes}
            own = sum(chain.tokens % BLOCK + more for chain, more in mine)
            assert held.tokens(worker) == len(chunks) * BLOCK + own
    assert not live
    assert not held._workers


@pytest.mark.parametrize("chunks", range(6))
def test_what_is_known_of_a_prompt_is_found_wherever_it_ends(chunks: int) -> None:
    limits = {A: 100}
    held = HeldKV(limits.get)
    held.hold(A, prompt(*range(chunks * BLOCK)))
    for limits[A], room in ((5 * BLOCK, True), (5 * BLOCK - 1, False)):
        assert held.has_room(A, prompt(*range(5 * BLOCK))) is room
