import random

import pytest

from prefillshare.router.placement.known import COMMON, KnownPrefixes


def chain(text: str) -> list[bytes]:
    """A chunk for each letter, known by all letters up to it."""
    return [text[: end + 1].encode() for end in range(len(text))]


def test_the_longest_common_beginning_is_found() -> None:
    known = KnownPrefixes(100)
    known.add(chain("context one"))
    known.add(chain("context two"))
    assert known.longest(chain("context one, and more")).chunks == len("context one")
    assert known.longest(chain("context three")).chunks == len("context t")
    assert known.longest(chain("another")).chunks == 0
    assert known.longest([]).chunks == 0


def test_prompts_are_forgotten_from_their_ends_and_the_unused_longest_first() -> None:
    known = KnownPrefixes(6)
    known.add(chain("abc"))
    known.add(chain("xyz"))
    known.add(chain("abc"))
    known.add(chain("12"))
    assert [known.longest(chain(text)).chunks for text in ("abc", "xyz", "12")] == [3, 1, 2]
    assert known.tokens == 6


def test_a_prompt_longer_than_the_memory_is_known_by_its_beginning() -> None:
    known = KnownPrefixes(3)
    known.add(chain("abcdef"))
    assert (known.longest(chain("abcdef")).chunks, known.tokens) == (3, 3)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_known_has_all_before_it_known(seed: int) -> None:
    draw, known = random.Random(seed), KnownPrefixes(25)
    for _ in range(300):
        text = "".join(draw.choices("ab", k=draw.randint(1, 10)))
        known.add(chain(text))
        for end in range(2, len(text) + 1):
            prefix = chain(text)[:end]
            assert known.longest(prefix).chunks == sum(part in known._branches for part in prefix)


def test_a_conversation_knows_its_own_beginning_and_a_common_one_is_nobodys() -> None:
    known = KnownPrefixes(1000)
    for number in range(COMMON):
        known.add(chain(f"examples {number} question"))
    assert known.longest(chain("examples 9 question")).own
    known.add(chain("examples 9 question"))
    assert not known.longest(chain("examples 8 question")).own
    assert known.longest(chain("examples 9 question, answer")).own
    assert not known.longest(chain("something else")).own


def test_a_prompt_that_ends_has_not_gone_on_yet() -> None:
    known = KnownPrefixes(1000)
    known.add(chain("question"))
    for number in range(COMMON):
        known.add(chain(f"question{number}"))
    assert known.longest(chain("question")).own
    known.add(chain("questions"))
    assert not known.longest(chain("question")).own


def test_saying_the_same_again_makes_nothing_common() -> None:
    known = KnownPrefixes(1000)
    for _ in range(3 * COMMON):
        known.add(chain("hello"))
    assert known.longest(chain("hello, and more")).own


def test_a_lower_limit_takes_effect_at_once() -> None:
    known = KnownPrefixes(1000)
    known.add(chain("abcdef"))
    known.add(chain("xy"))
    known.limit(4)
    assert (known.longest(chain("abcdef")).chunks, known.longest(chain("xy")).chunks) == (2, 2)
    known.add(chain("123"))
    assert known.tokens == 4


def test_chunks_count_for_as_long_as_they_were_when_they_came() -> None:
    known = KnownPrefixes(100)
    known.add(chain("abcd"), 25)
    assert (known.longest(chain("abcd")).chunks, known.tokens) == (4, 100)
    known.add(chain("ab12"), 20)  # the beginning is known as it was
    assert [known.longest(chain(text)).chunks for text in ("abcd", "ab12")] == [2, 4]
    assert known.tokens == 90
    known.limit(70)
    assert (known.longest(chain("ab12")).chunks, known.tokens) == (3, 70)
