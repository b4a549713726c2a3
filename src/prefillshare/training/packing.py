"""Conversations -> rows of a batch: one a row, or several where they fit."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets

from prefillshare.training.conversation import Example

_NUMBER = Value("int32")
_COLUMNS = Features({"conversations": List({"ids": List(_NUMBER), "spans": List(List(_NUMBER))}), "length": _NUMBER})
_AT_ONCE = 1000  # rows that are Python's lists, ten times as large as they stay, at a time


def pack(lengths: Sequence[int], *, row_length: int) -> list[list[int]]:
    """Which conversations make up each row of at most `row_length` tokens, by their numbers.

    By best-fit decreasing: the longest first, each into the fullest row that still takes it. They stay whole.

    Args:
        lengths: of the conversations, in tokens.

    Raises:
        ValueError: a conversation is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of every row, sorted: trying each row would be quadratic
    for conversation in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[conversation]
        if length > row_length:
            raise ValueError(f"a conversation of {length} tokens does not fit into a row of {row_length}")
        place = bisect_left(room, (length, 0))
        if place < len(room):
            free, number = room.pop(place)
            rows[number].append(conversation)
        else:
            free, number = row_length, len(rows)
            rows.append([conversation])
        insort(room, (free - length, number))
    return rows


def to_dataset(rows: Iterable[Sequence[Example]]) -> Dataset:
    """What CacheConditionedTrainer takes, of at least one row.

    `length` is what `train_sampling_strategy: group_by_length` sorts by.
    """
    records = (_record(row) for row in rows)
    parts = []
    while some := list(islice(records, _AT_ONCE)):
        parts.append(Dataset.from_list(some, features=_COLUMNS))
    return concatenate_datasets(parts)


def from_record(record: dict[str, Any]) -> list[Example]:
    """A row of `to_dataset`, as the conversations that it was made of."""
    return [Example(item["ids"], [tuple(span) for span in item["spans"]]) for item in record["conversations"]]


def _record(row: Sequence[Example]) -> dict[str, Any]:
    conversations = [{"ids": example.ids, "spans": [list(span) for span in example.spans]} for example in row]
    return {"conversations": conversations, "length": sum(len(example.ids) for example in row)}
