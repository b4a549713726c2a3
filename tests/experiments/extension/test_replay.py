from collections.abc import Sequence
from typing import Any
from zlib import crc32

import pytest

from experiments.extension.replay import BLOCK_SIZE, Sums, replay, table
from prefillshare.instructions import Placement


def tokenise(text: str) -> Sequence[int]:
    return [crc32(text[start : start + 4].encode()) for start in range(0, len(text), 4)]


def row(thought: int, steps: int) -> dict[str, Any]:
    step = {"thought": "so and so " * thought, "action": "Search[x]", "observation": "x is y and more " * 20}
    return {"question": "why? " * 40, "steps": [step] * steps}


@pytest.mark.parametrize("placement", ["in_place", "behind_context"])
def test_what_is_found_is_what_turns_need_not_compute(placement: Placement) -> None:
    rows = [row(60, 5), row(60, 1)]
    off, on = (replay(rows, tokenise, placement, extends=extends) for extends in (False, True))
    assert (off.ahead, off.found, off.wasted, off.extensions) == (0, 0, 0, 0)
    assert 0 < on.found == off.computed - on.computed
    assert on.found + on.wasted == on.ahead
    assert on.found % BLOCK_SIZE == 0
    assert on.turns == off.turns == 12


def test_short_answers_are_extended_when_they_fill_a_block_and_not_else() -> None:
    on = replay([row(6, 8)], tokenise, "in_place", extends=True)
    assert 0 < on.extensions < on.turns / 2


def test_the_table_is_a_turns_mean() -> None:
    lines = table([Sums("in_place", True, 10, 250, 2000, 2, 400, 300, 100)]).splitlines()
    assert lines[2] == "| `in_place` | on | 200 | 20 % | 40 | 75 % | 25 % |"
