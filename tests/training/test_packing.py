import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.training.conversation import Example
from prefillshare.training.packing import pack, to_dataset
from tests.training.tiny import single


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=30))
def test_rows_hold_every_conversation_once_and_whole(lengths: list[int]) -> None:
    examples = [single([number] * (length - 1), [0]) for number, length in enumerate(lengths)]
    rows = pack(examples, row_length=30)
    assert sorted(example.ids[0] for row in rows for example in row) == list(range(len(lengths)))
    assert all(sum(len(example.ids) for example in row) <= 30 for row in rows)


def pack_by_trying_every_row(examples: list[Example], row_length: int) -> list[list[Example]]:
    rows: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: len(example.ids), reverse=True):
        room = [row_length - sum(len(other.ids) for other in row) for row in rows]
        fitting = [number for number, free in enumerate(room) if free >= len(example.ids)]
        if fitting:
            rows[min(fitting, key=room.__getitem__)].append(example)
        else:
            rows.append([example])
    return rows


@given(lengths=st.lists(st.integers(2, 12) | st.integers(2, 30), max_size=60))
def test_the_rows_are_those_of_trying_every_row(lengths: list[int]) -> None:
    examples = [single([number] * (length - 1), [0]) for number, length in enumerate(lengths)]
    assert pack(examples, row_length=30) == pack_by_trying_every_row(examples, 30)


def test_the_fullest_row_that_still_takes_a_conversation_gets_it() -> None:
    examples = [single([0] * (length - 1), [0]) for length in (6, 5, 4, 3)]
    rows = pack(examples, row_length=10)
    assert [[len(example.ids) for example in row] for row in rows] == [[6, 4], [5, 3]]


def test_a_conversation_longer_than_a_row_is_not_cut() -> None:
    with pytest.raises(ValueError, match="11 tokens does not fit into a row of 10"):
        pack([single([0] * 10, [0])], row_length=10)


def test_the_dataset_gives_rows_back_with_their_length() -> None:
    (record,) = to_dataset([[single([1, 2], [3]), single([4], [5, 6])]])
    assert record == {
        "conversations": [{"ids": [1, 2, 3], "spans": [[2, 3]]}, {"ids": [4, 5, 6], "spans": [[1, 3]]}],
        "length": 6,
    }
