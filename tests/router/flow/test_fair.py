import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.flow.fair import FairQueue, Shares


def served(queue: FairQueue[str], calls: int | None = None) -> list[str]:
    found = []
    while (entry := queue.first()) and (calls is None or len(found) < calls):
        queue.serve(entry)
        found.append(entry.item)
    return found


def test_calls_of_one_key_are_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, tokens in (("a", 5), ("b", 1), ("c", 3)):
        queue.push("k", tokens, item)
    assert served(queue) == ["a", "b", "c"]


def test_a_key_with_one_call_does_not_wait_for_all_of_another() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push("flood", 10, f"flood {number}")
    served(queue, 20)
    queue.push("quiet", 10, "quiet")
    assert "quiet" in served(queue, 2)


def test_long_calls_count_for_more() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push("long", 100, "long")
        for _ in range(10):
            queue.push("short", 10, "short")
    assert served(queue, 44).count("long") == pytest.approx(4, abs=1)


def test_weights_are_shares() -> None:
    queue: FairQueue[str] = FairQueue({"gold": 3.0})
    for _ in range(40):
        queue.push("gold", 10, "gold")
        queue.push("other", 10, "other")
    assert served(queue, 40).count("gold") == pytest.approx(30, abs=1)


def test_who_was_away_has_saved_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.push("a", 10, "a")
    served(queue, 30)
    for _ in range(20):
        queue.push("b", 10, "b")
    assert served(queue, 20).count("b") == pytest.approx(10, abs=1)


def test_by_shares_the_next_key_is_the_one_that_had_least_of_all_queues() -> None:
    shares, queue = Shares({"gold": 2.0}), FairQueue[str]()
    for key in ("gold", "other"):
        for _ in range(20):
            queue.push(key, 10, key)
    shares.serve("gold", 100)  # elsewhere
    found = []
    while len(found) < 20 and (entry := queue.first(shares=shares)):
        queue.serve(entry)
        shares.serve(entry.key, entry.tokens)
        found.append(entry.item)
    assert found[:5] == ["other"] * 5
    assert found[5:].count("gold") == pytest.approx(10, abs=1)


def test_by_shares_who_could_not_be_served_has_saved_nothing_up() -> None:
    shares = Shares({})
    for _ in range(50):
        shares.serve("a", 10)
    assert shares.tag("b") == 490
    assert shares.tag("a") == 500


def test_who_stood_back_by_shares_has_saved_nothing_up_in_the_queue() -> None:
    shares, queue = Shares({}), FairQueue[str]()
    for key in ("a", "b"):
        for _ in range(40):
            queue.push(key, 10, key)
    shares.serve("a", 10**6)
    for _ in range(20):
        entry = queue.first(shares=shares)
        assert entry is not None
        assert entry.key == "b"
        queue.serve(entry)
    assert served(queue, 20).count("a") == pytest.approx(10, abs=1)


def test_a_call_that_leaves_unserved_costs_its_key_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    big = queue.push("a", 1000, "big")
    queue.push("a", 10, "a")
    queue.push("b", 10, "b")
    queue.remove(big)
    assert served(queue) == ["a", "b"]


def test_a_key_pays_for_what_it_had_when_it_comes_back_while_others_wait() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 100, "a")
    for _ in range(8):
        queue.push("b", 10, "b")
    assert served(queue, 2) == ["a", "b"]
    queue.push("a", 100, "a")
    assert served(queue) == ["b"] * 7 + ["a"]


def test_the_newest_call_of_the_longest_line_goes_first_when_there_are_too_many() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 10, "a")
    queue.push("flood", 10, "first")
    queue.push("flood", 10, "last")
    assert [entry.item for entry in queue.surplus()] == ["last"]
    queue.push("a", 30, "big")
    assert [entry.item for entry in queue.surplus()] == ["big", "last"]


def test_the_only_call_of_a_key_is_given_up_for_nobody_however_large() -> None:
    queue: FairQueue[str] = FairQueue({"paying": 4.0})
    queue.push("quiet", 1000, "quiet")
    for number in range(3):
        queue.push("flood", 10, f"flood {number}")
        queue.push("paying", 10, f"paying {number}")
    assert [entry.item for entry in queue.surplus()] == ["flood 2", "flood 1", "paying 2", "paying 1"]
    assert [entry.item for entry in queue.heads()] == ["quiet", "flood 0", "paying 0"]
    assert len(queue) == 7  # nobody has been taken out


def test_tokens_ahead_are_the_keys_own_and_the_shares_of_others() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        last = queue.push("flood", 10, "x")
    assert queue.ahead_of(last) == 90
    assert queue.ahead_of(queue.push("new", 20, "y")) == 10
    assert queue.ahead_of(queue.push("new", 5000, "z")) == 20 + 30  # its own size plays no part
    assert queue.ahead_of(last) == 90 + 90 + 20


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.floats(0.25, 4),
)
def test_two_keys_that_wait_have_had_the_same_tokens_for_their_weights(
    a: list[int], b: list[int], weight: float
) -> None:
    """The bound of the paper's theorem 1: for each of the keys one call of the largest size."""
    queue: FairQueue[int] = FairQueue({"a": weight})
    for key, sizes in (("a", a), ("b", b)):
        for size in sizes:
            queue.push(key, size, size)
    had = {"a": 0.0, "b": 0.0}
    while queue.calls_of("a") and queue.calls_of("b"):
        entry = queue.first()
        assert entry is not None
        queue.serve(entry)
        had[entry.key] += entry.tokens
        assert abs(had["a"] / weight - had["b"]) <= max(a) / weight + max(b) + 1e-6


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.sampled_from(["push", "serve", "leave"]))))
def test_the_counts_are_those_of_the_calls_in_it(steps: list[tuple[str, int, str]]) -> None:
    queue: FairQueue[int] = FairQueue()
    for key, tokens, step in steps:
        entries = list(queue)
        if step == "push":
            queue.push(key, tokens, tokens)
        elif entries and step == "serve":
            entry = queue.first()
            assert entry is not None
            queue.serve(entry)
        elif entries:
            queue.remove(entries[tokens % len(entries)])
        entries = list(queue)
        assert len(queue) == len(entries)
        assert queue.tokens == sum(entry.tokens for entry in entries)
        assert queue.calls_of(key) == sum(entry.key == key for entry in entries)
        assert (queue.first() is None) == (not entries)


def test_a_preferred_call_goes_before_older_ones_of_its_key() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in "abc":
        queue.push("k", 10, item)
    entry = queue.first(lambda item: item == "b")
    assert entry is not None
    queue.serve(entry)
    assert served(queue) == ["a", "c"]
    assert len(queue) == queue.tokens == 0


def test_preferences_do_not_change_which_key_is_next() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 10, "of a")
    queue.push("b", 10, "of b, preferred")
    assert queue.first(lambda item: "preferred" in item) is None  # it is the turn of a
    served(queue, 1)
    assert queue.first(lambda item: "preferred" in item) is not None


def test_only_so_many_calls_are_looked_at_for_a_preferred_one() -> None:
    queue: FairQueue[int] = FairQueue()
    asked: list[int] = []
    for number in range(1000):
        queue.push("k", 10, number)
    assert queue.first(lambda item: bool(asked.append(item))) is None
    assert asked == list(range(32))


def test_limits_apply_to_the_calls_that_do_not_stay() -> None:
    queue: FairQueue[str] = FairQueue({"b": 2.0})
    queue.push("a", 10, "a0", stays=True)
    queue.push("b", 10, "b0")
    assert [queue.push("a", tokens, "") for tokens in (5, 6)] == list(queue.limited())[:2]
    queue.push("c", 10, "c0", stays=True)
    assert (queue.tokens, queue.limited().tokens) == (41, 21)
    assert [entry.tokens for entry in queue.limited().surplus()] == [6]
    assert [entry.tokens for entry in queue.limited().heads()] == [5, 10]
    plain: FairQueue[str] = FairQueue()
    plain.push("a", 1, "a0")
    assert plain.limited() is plain
