"""Conversations -> rows of a batch: one a row, or several where they fit."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset

from prefillshare.training.conversation import Example


def pack(examples: Sequence[Example], *, row_length: int) -> list[list[Example]]:
    """Rows of at most `row_length` tokens, by best-fit decreasing: the longest first, each into the fullest row that
    still takes it. Conversations stay whole.

    Raises:
        ValueError: a conversation is longer than a row.
    """
    rows: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of every row, sorted: trying each row would be quadratic
    for example in sorted(examples, key=lambda example: len(example.ids), reverse=True):
        length = len(example.ids)
        if length > row_length:
            raise ValueError(f"a conversation of {length} tokens does not fit into a row of {row_length}")
        place = bisect_left(room, (length, 0))
        if place < len(room):
            free, number = room.pop(place)
            rows[number].append(example)
        else:
            free, number = row_length, len(rows)
            rows.append([example])
        insort(room, (free - length, number))
    return rows


def to_dataset(rows: Iterable[Sequence[Example]]) -> Dataset:
    """What CacheConditionedTrainer takes. `length` is what `train_sampling_strategy: group_by_length` sorts by."""
    return Dataset.from_list([_record(row) for row in rows])


def from_record(record: dict[str, Any]) -> list[Example]:
    """A row of `to_dataset`, as the conversations that it was made of."""
    return [Example(item["ids"], [tuple(span) for span in item["spans"]]) for item in record["conversations"]]


def _record(row: Sequence[Example]) -> dict[str, Any]:
    conversations = [{"ids": example.ids, "spans": [list(span) for span in example.spans]} for example in row]
    return {"conversations": conversations, "length": sum(len(example.ids) for example in row)}
