import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.training.conversation import Example
from prefillshare.training.store import ExampleStore
from tests.training.tiny import conversation

lengths = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3)


def stored(examples: list[Example]) -> ExampleStore:
    store = ExampleStore()
    for example in examples:
        store.append(example)
    return store


@given(st.lists(lengths, max_size=5))
def test_it_gives_back_what_it_was_given(parts: list[list[tuple[int, int]]]) -> None:
    examples = [conversation(*(n for pair in each for n in pair), seed=seed) for seed, each in enumerate(parts)]
    store = stored(examples)
    assert (len(store), list(store), store[1:]) == (len(examples), examples, examples[1:])
    assert [store[number - len(examples)] for number in range(len(examples))] == examples
    with pytest.raises(IndexError):
        store[len(examples)]


def test_a_token_takes_four_bytes() -> None:
    count, length = 400, 500
    tracemalloc.start()
    store = ExampleStore()
    for number in range(count):
        store.append(Example([1000 * number + place for place in range(length)], [(1, length)]))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 5 * count * length
    assert store[-1].ids[-1] == 1000 * (count - 1) + length - 1
