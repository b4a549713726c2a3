import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.training.packing import pack, to_dataset
from tests.training.tiny import single


@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=30))
def test_rows_hold_every_conversation_once_and_whole(lengths: list[int]) -> None:
    rows = pack(lengths, row_length=30)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 30 for row in rows)


def pack_by_trying_every_row(lengths: list[int], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for conversation in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        room = [row_length - sum(lengths[other] for other in row) for row in rows]
        fitting = [number for number, free in enumerate(room) if free >= lengths[conversation]]
        if fitting:
            rows[min(fitting, key=room.__getitem__)].append(conversation)
        else:
            rows.append([conversation])
    return rows


@given(lengths=st.lists(st.integers(2, 12) | st.integers(2, 30), max_size=60))
def test_the_rows_are_those_of_trying_every_row(lengths: list[int]) -> None:
    assert pack(lengths, row_length=30) == pack_by_trying_every_row(lengths, 30)


def test_the_fullest_row_that_still_takes_a_conversation_gets_it() -> None:
    assert pack([6, 5, 4, 3], row_length=10) == [[0, 2], [1, 3]]


def test_a_conversation_longer_than_a_row_is_not_cut() -> None:
    with pytest.raises(ValueError, match="11 tokens does not fit into a row of 10"):
        pack([11], row_length=10)


def test_the_dataset_gives_rows_back_with_their_length() -> None:
    (record,) = to_dataset([[single([1, 2], [3]), single([4], [5, 6])]])
    assert record == {
        "conversations": [{"ids": [1, 2, 3], "spans": [[2, 3]]}, {"ids": [4, 5, 6], "spans": [[1, 3]]}],
        "length": 6,
    }


def test_a_dataset_has_all_rows_in_order_and_four_bytes_a_token() -> None:
    count, length = 2500, 40
    dataset = to_dataset([single([number] * (length - 1), [7])] for number in range(count))
    assert [row["conversations"][0]["ids"][0] for row in dataset] == list(range(count))
    assert dataset.data.nbytes < 5.5 * count * length  # what is not tokens: where rows and spans begin
