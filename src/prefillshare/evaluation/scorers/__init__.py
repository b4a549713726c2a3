"""Is an answer right? One scorer a kind of answer, all of them `(answer, item) -> bool`."""

from collections.abc import Callable
from dataclasses import dataclass

from prefillshare.evaluation.items import Item
from prefillshare.evaluation.scorers import call, number, python, sql, text


@dataclass(frozen=True, slots=True)
class Scorer:
    """`scorer(answer, item)` says whether a model's answer, as text, is what the item expects. It never raises.

    `check(item)` raises BadField when the item lacks what the scorer needs. It is called once an item, before
    any model is loaded. `needs_expected` says whether a row has to have an expected answer.
    """

    is_right: Callable[[str, Item], bool]
    check: Callable[[Item], None]
    needs_expected: bool = True

    def __call__(self, answer: str, item: Item) -> bool:
        return self.is_right(answer, item)


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(text.is_exact, text.check_exact),
    "json": Scorer(text.is_json, text.check_json),
    "number": Scorer(number.is_right, number.check),
    "sql": Scorer(sql.is_right, sql.check),
    "call": Scorer(call.is_right, call.check),
    "python": Scorer(python.is_right, python.check, needs_expected=False),
}
