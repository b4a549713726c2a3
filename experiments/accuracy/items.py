"""What a task family is made of: rows to train on, and items to answer that were held out of them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

Message = dict[str, str]


@dataclass(frozen=True)
class Item:
    """A prompt, the answer that is trained on, and what its scorer wants to know of right answers, all plain JSON.

    `expected`, `tools` and `fields` are as in the items of `prefillshare evaluate`.
    """

    prompt: list[Message]
    answer: str
    expected: Any
    tools: list[dict[str, Any]] | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """One draw of a family. `train` is in training order, epoch behind epoch; nothing in it shares its held-out key
    (function, template, wording) with `validation` or `test`, nor do those two with each other."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]

    def digest(self) -> str:
        """Over every prompt and answer, so that results of other items are never taken for results of these."""
        content = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Size:
    """How much of a family to draw: rows to train on (epochs included) and held-out items."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Family:
    """A task family with the budget that both systems get for it: as many steps at every rate.

    `longer` is what the decode module is trained besides, for the time that its cheaper steps leave: rates, and how
    often to go through the rows. Full fine-tuning is, too, as a control. `longest` is what the decode module is trained
    in place of that for the time that those of full fine-tuning take. `adapters` are the rates at which it is trained
    as a LoRA adapter.
    """

    name: str
    held_out: str  # what distinguishes a held-out item, for the table
    build: Callable[[int, Size], Data]  # of a seed
    scorer: str
    steps: int
    rates: tuple[float, ...]
    max_new_tokens: int
    longer: tuple[tuple[float, int], ...] = ()
    longest: tuple[tuple[float, int], ...] = ()
    adapters: tuple[float, ...] = ()


def epochs(rows: list[Item], length: int, shuffle: Callable[[list[Item]], None]) -> list[Item]:
    """`length` rows: the given ones over and over, each time in a new order."""

    def endless() -> Iterator[Item]:
        while True:
            turn = list(rows)
            shuffle(turn)
            yield from turn

    return [row for row, _ in zip(endless(), range(length), strict=False)]
