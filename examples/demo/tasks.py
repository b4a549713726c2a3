"""The demo's two tasks, generated: questions to SQL, and order e-mails to JSON records.

A row's prompt is a shop's handbook (system message: database schema, then, in half of the e-mail rows and a quarter
of the others, a price list and a log of order e-mails, up to about 1,200 tokens), any number of earlier turns of both
tasks, and one new question or e-mail.
A module therefore meets in training what it meets in a session: a context to which both modules have contributed.

What is held out: combinations. An item is a template filled with entities (customer, city, product). The indices of
template and entities add up to a number; where it is divisible by 5 the item is held out, so every template and
every entity is seen in training, but never a held-out combination of them. Handbooks, with the e-mails and earlier
turns in them, are drawn anew for the held-out split. Since templates are shared, the score measures whether a
module has learnt the two formats and copies the right values into them, not whether it understands new wordings.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

Task = Literal["sql", "json"]
Split = Literal["train", "held_out"]
Message = dict[str, str]

TASKS: tuple[Task, Task] = ("json", "sql")  # the order in which a session alternates

# Mostly words that are one token of the base's tokenizer: a minute of training is for the formats, not for spelling.
CUSTOMERS = (
    "Anna", "Ben", "David", "Frank", "Henry", "Jack", "Peter", "Mary", "James", "Robert",
    "Sarah", "Alice", "Tom", "Adam", "Martin", "Simon", "Daniel", "Maria", "Emily", "George",
)  # fmt: skip
CITIES = (
    "Oxford", "London", "Paris", "Rome", "Boston", "Chicago", "Cambridge", "Washington", "Berlin", "Madrid", "Vienna",
    "Dublin",
)  # fmt: skip
PRODUCTS = (
    "pine table", "pine bench", "pine shelf", "glass lamp", "glass bowl", "glass vase", "clay pot", "clay mug",
    "wood desk", "wood chair", "metal box", "metal lamp", "paper lamp", "stone bowl", "iron chair", "iron bench",
    "gold frame", "plastic box",
)  # fmt: skip

# {c}ustomer, {t}own and {p}roduct on both sides: the question, then the query.
_QUESTIONS = (
    ("How many orders came from {t}?", "SELECT COUNT(*) FROM orders WHERE city = '{t}';"),
    ("What does the {p} cost?", "SELECT price FROM products WHERE name = '{p}';"),
    ("Which products did {c} buy?", "SELECT product FROM orders WHERE customer = '{c}';"),
    ("Who ordered the {p}?", "SELECT customer FROM orders WHERE product = '{p}';"),
    ("List the customers from {t} with a {p}.", "SELECT customer FROM orders WHERE city = '{t}' AND product = '{p}';"),
    ("Did {c} buy the {p}?", "SELECT COUNT(*) FROM orders WHERE customer = '{c}' AND product = '{p}';"),
    ("How many of the {p} are in stock?", "SELECT stock FROM products WHERE name = '{p}';"),
)

_MAILS = (
    "Hello, please send {q} of the {p} to {c} in {t}. Thank you!",
    "Hi there, {c} from {t} here. I would like to order {q} units of the {p}.",
    "Could you deliver the {p} to {t}? We need {q}. Kind regards, {c}",
    "Good morning! {q} x {p}, please. My name is {c} and I live in {t}.",
    "This is {c}. We are opening a cafe in {t} and need the {p}, {q} pieces.",
)  # fmt: skip

# Parts of four batches behind handbooks and, for each of them, this many behind the schema alone. Queries take more
# rows to learn than records, and rows behind the schema alone are cheap.
_PARTS: dict[Task, int] = {"json": 3, "sql": 3}
_SHORT_BATCHES: dict[Task, int] = {"json": 1, "sql": 3}

SCHEMA = """\
orders(id, customer, city, product, quantity)
products(id, name, price, stock)"""

_POLICIES = (
    "Parcels leave the warehouse on weekdays before noon.",
    "Furniture is delivered by two people and carried to the room of choice.",
    "Customers may return unused goods within thirty days.",
    "Orders of more than ten units get a discount of five percent.",
    "Glass and clay are packed twice and marked as fragile.",
    "We answer every e-mail within one working day.",
    "Prices include tax; delivery to islands costs extra.",
    "Gift wrapping is free in December.",
)


@dataclass(frozen=True)
class Item:
    """One call: what the user says to the module of `task`, and the answer expected of it."""

    task: Task
    question: str
    answer: str


@dataclass(frozen=True)
class Row:
    """An item in its context."""

    context: tuple[Message, ...]
    item: Item
    is_short: bool  # the handbook is the schema alone

    def prompt(self) -> list[Message]:
        return [*self.context, {"role": "user", "content": self.item.question}]

    def to_json(self) -> str:
        completion = [{"role": "assistant", "content": self.item.answer}]
        return json.dumps({"prompt": self.prompt(), "completion": completion})


def draw_item(rng: random.Random, task: Task, split: Split) -> Item:
    """An item of the given split, uniformly."""
    templates = _QUESTIONS if task == "sql" else _MAILS
    while True:
        n, c, t, p = (rng.randrange(len(x)) for x in (templates, CUSTOMERS, CITIES, PRODUCTS))
        values = {"c": CUSTOMERS[c], "t": CITIES[t], "p": PRODUCTS[p]}
        template = _QUESTIONS[n][0] if task == "sql" else _MAILS[n]
        used = sum(i for i, key in ((c, "{c}"), (t, "{t}"), (p, "{p}")) if key in template)
        if ((n + used) % 5 == 0) != (split == "held_out"):
            continue
        if task == "sql":
            return Item(task, template.format(**values), _QUESTIONS[n][1].format(**values))
        quantity = rng.randrange(2, 20)
        record = {"customer": CUSTOMERS[c], "city": CITIES[t], "product": PRODUCTS[p], "quantity": quantity}
        return Item(task, template.format(q=quantity, **values), json.dumps(record, separators=(",", ":")))


def draw_handbook(rng: random.Random, split: Split, *, mails: int) -> Message:
    """The system message. Without e-mails it is the schema alone (about 50 tokens)."""
    text = f"You work in the office of the Harbour Lane shop. The database has the tables\n{SCHEMA}"
    if mails:
        products = rng.sample(PRODUCTS, 10)
        prices = "\n".join(f"- {name}: {rng.randrange(4, 240)}.{rng.choice(('00', '50', '90'))}" for name in products)
        policies = "\n".join(f"- {policy}" for policy in rng.sample(_POLICIES, 5))
        log = "\n".join(f"[{n}] {draw_item(rng, 'json', split).question}" for n in range(1, mails + 1))
        text += f"\n\nHouse rules\n{policies}\n\nPrice list\n{prices}\n\nE-mails of the last days\n{log}"
    return {"role": "system", "content": text}


def as_turn(item: Item) -> list[Message]:
    return [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]


def draw_rows(
    seed: int, task: Task, split: Split, *, contexts: int, turns: tuple[int, ...], mails: int, rows: int
) -> Iterator[Row]:
    """`contexts` handbooks, each with `rows` rows behind every number of earlier turns in `turns` (ascending).

    Rows that follow each other share their context, and the next context continues it: taken in this order, the base
    computes the KV of a handbook once (see training/base_cache.py).
    """
    rng = random.Random(f"{seed} {task} {split} {mails}")
    for _ in range(contexts):
        context = [draw_handbook(rng, split, mails=mails)]
        taken = 0
        for count in turns:
            for _ in range(count - taken):
                context += as_turn(draw_item(rng, rng.choice(TASKS), split))
            taken = count
            for _ in range(rows):
                yield Row(tuple(context), draw_item(rng, task, split), is_short=mails == 0)


def training_rows(task: Task, *, batch_size: int, seed: int = 0) -> list[Row]:
    """Batches of rows with one context a batch: some behind the schema alone, then one behind a handbook."""
    rows: list[Row] = []
    shorts = _SHORT_BATCHES[task]
    for part in range(_PARTS[task]):
        draw = partial(draw_rows, seed * 1000 + part, task, "train", rows=batch_size)
        short = draw(contexts=shorts, turns=(0, 1, 2, 4), mails=0)
        long = draw(contexts=1, turns=(0, 2, 4, 6), mails=16)
        while batch := list(islice(long, batch_size)):
            rows += [*islice(short, shorts * batch_size), *batch]
    return rows


def held_out_rows(task: Task, *, items: int = 100, seed: int = 0) -> list[Row]:
    """Half of the items behind the schema alone, half behind handbooks and turns of a session's length."""
    half = items // 2
    draw = partial(draw_rows, seed, task, "held_out", contexts=math.ceil(items / 20), rows=5)
    return [*islice(draw(turns=(0, 2), mails=0), half), *islice(draw(turns=(1, 5), mails=28), items - half)]


def write_rows(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(row.to_json() + "\n" for row in rows))


def session(seed: int = 11) -> tuple[list[Message], list[tuple[Task, str, str]]]:
    """A session to play: the shared context, then (module, user message, expected answer) for six calls.

    The player appends every user message and the answer it got to the context before the next call. With the default
    seed the calls are worded in six different ways.
    """
    rng = random.Random(f"{seed} session")
    context = [draw_handbook(rng, "held_out", mails=28)]
    items = [draw_item(rng, task, "held_out") for _ in range(3) for task in TASKS]
    return context, [(item.task, item.question, item.answer) for item in items]
