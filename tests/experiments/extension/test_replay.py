from collections.abc import Sequence
from zlib import crc32

import pytest

from experiments.extension.replay import BLOCK_SIZE, Sums, replay, table
from prefillshare.instructions import Placement
from prefillshare.workloads.session import Session, Turn, Workload


def tokenise(text: str) -> Sequence[int]:
    return [crc32(text[start : start + 4].encode()) for start in range(0, len(text), 4)]


def workload(words: int, *steps: int) -> Workload:
    """Sessions of so many steps each: a planner that says many words or few, and an actor."""
    question, found = "why? " * 40, "x is y and more " * 20

    def turn(role: str, observed: str, output: str) -> Turn:
        return Turn(role, observed, len(tokenise(observed)), output, len(tokenise(output)), 0.0, f"You are the {role}.")

    def session(number: int, count: int) -> Session:
        thought = "so and so " * words
        turns = [
            turn(*each)
            for step in range(count)
            for each in (("planner", found if step else question, thought), ("actor", "", "Search[x]"))
        ]
        return Session(str(number), tuple(turns))

    return Workload("made up", "", 0, tuple(session(number, count) for number, count in enumerate(steps)))


@pytest.mark.parametrize("placement", ["in_place", "behind_context"])
def test_what_is_found_is_what_turns_need_not_compute(placement: Placement) -> None:
    sessions = workload(60, 5, 1)
    off, on = (replay(sessions, tokenise, placement, extends=extends) for extends in (False, True))
    assert (off.ahead, off.found, off.wasted, off.extensions) == (0, 0, 0, 0)
    assert 0 < on.found == off.computed - on.computed
    assert on.found + on.wasted == on.ahead
    assert on.found % BLOCK_SIZE == 0
    assert on.turns == off.turns == 12


def test_short_answers_are_extended_when_they_fill_a_block_and_not_else() -> None:
    on = replay(workload(10, 8), tokenise, "in_place", extends=True)
    assert 0 < on.extensions < on.turns / 2


def test_the_table_is_a_turns_mean() -> None:
    lines = table([Sums("in_place", True, 10, 250, 2000, 2, 400, 300, 100)]).splitlines()
    assert lines[2] == "| `in_place` | on | 200 | 20 % | 40 | 75 % | 25 % |"
