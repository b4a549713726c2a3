"""Is an answer right? One scorer a kind of answer, all of them `(answer, item) -> bool`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import call, number, python, sql, text
from prefillshare.evaluation.scorers.thought import after_thought


@dataclass(frozen=True, slots=True)
class Scorer:
    """`scorer(answer, item)` says whether a model's answer, as text, is what the item expects. It never raises.

    A thought (`<think>...</think>`) at the beginning of the answer, or of an expected text, does not count. An answer
    whose thought never ends is wrong.

    `is_right` and `is_fit` are the scorer proper, and see no thoughts. `needs_expected` says whether a row has to have
    an expected answer, and `expects_calls` that it is an assistant message's calls where it has text beside them.
    """

    is_right: Callable[[str, Item], bool]
    is_fit: Callable[[Item], None]
    needs_expected: bool = True
    expects_calls: bool = False

    def __call__(self, answer: str, item: Item) -> bool:
        said = after_thought(answer)
        return said is not None and self.is_right(said, _without_thought(item))

    def check(self, item: Item) -> None:
        """Called once an item, before any model is loaded.

        Raises:
            BadField: the item lacks what the scorer needs.
        """
        if self.needs_expected and _expected(item) is None and item.expected is not None:
            problem = f"its thought never ends, so that no answer is right: {item.expected!r:.80}; add </think>"
            raise BadField("expected", problem)
        self.is_fit(_without_thought(item))


def _expected(item: Item) -> Any:
    """What is expected behind a thought. None, too, where an expected text's thought never ends."""
    return after_thought(item.expected) if isinstance(item.expected, str) else item.expected


def _without_thought(item: Item) -> Item:
    expected = _expected(item)
    return item if expected is item.expected else replace(item, expected=expected)


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(text.is_exact, text.check_exact),
    "json": Scorer(text.is_json, text.check_json),
    "number": Scorer(number.is_right, number.check),
    "sql": Scorer(sql.is_right, sql.check),
    "call": Scorer(call.is_right, call.check, expects_calls=True),
    "python": Scorer(python.is_right, python.check, needs_expected=False),
}
