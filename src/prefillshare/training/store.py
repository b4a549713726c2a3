"""All conversations of a data source, in four bytes a token: Python's lists of numbers take ten times as much."""

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import overload

from prefillshare.training.conversation import Example


class ExampleStore(Sequence[Example]):
    """A sequence of examples that grows at its end. An item is made anew whenever it is asked for."""

    def __init__(self) -> None:
        self._ids = array("I")
        self._places = array("I")  # start and end of every response, counted from its own example's start
        self._id_ends = array("Q")  # by example: how many of `_ids`, and of `_places`, it and those before it have
        self._place_ends = array("Q")

    def append(self, example: Example) -> None:
        self._ids.extend(example.ids)
        self._places.extend(chain.from_iterable(example.spans))
        self._id_ends.append(len(self._ids))
        self._place_ends.append(len(self._places))

    def __len__(self) -> int:
        return len(self._id_ends)

    @overload
    def __getitem__(self, which: int) -> Example: ...

    @overload
    def __getitem__(self, which: slice) -> list[Example]: ...

    def __getitem__(self, which: int | slice) -> Example | list[Example]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        number = range(len(self))[which]  # raises IndexError, and counts from the end where it is negative
        ids = self._ids[self._id_ends[number - 1] if number else 0 : self._id_ends[number]]
        places = self._places[self._place_ends[number - 1] if number else 0 : self._place_ends[number]]
        return Example(ids.tolist(), list(zip(places[::2], places[1::2], strict=True)))
