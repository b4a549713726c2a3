"""Is an answer right? JSON by the value it parses to, SQL by what it returns from a few databases."""

import json
import random
import sqlite3
from functools import cache

from examples.demo.tasks import CITIES, CUSTOMERS, PRODUCTS, Task

_DATABASES = 4  # in one of them two different queries may well return the same count
_MAX_STEPS = 2_000_000  # of sqlite's virtual machine; the longest expected query needs about 100,000


def is_right(task: Task, answer: str, expected: str) -> bool:
    if task == "sql":
        return all(_run(expected, seed) == _run(answer, seed) for seed in range(_DATABASES))
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except ValueError:
        return False


def _run(query: str, seed: int) -> list[tuple[object, ...]] | None:
    """Rows in a fixed order, or None when the query is not one that sqlite answers."""
    if not query.startswith("SELECT "):
        return None
    try:
        return sorted(_database(seed).execute(query).fetchall(), key=repr)
    except (sqlite3.Error, sqlite3.Warning):
        return None


@cache
def _database(seed: int) -> sqlite3.Connection:
    """A read-only database in which every combination of entities occurs a random number of times."""
    rng = random.Random(seed)
    orders = [
        (customer, city, product, rng.randrange(1, 20))
        for customer in CUSTOMERS
        for city in CITIES
        for product in PRODUCTS
        for _ in range(rng.randrange(6))
    ]
    prices = rng.sample(range(100, 10_000), len(PRODUCTS))
    stocks = rng.sample(range(10_000), len(PRODUCTS))
    # Without a cache of statements, because steps are counted a statement.
    database = sqlite3.connect(":memory:", cached_statements=0)
    database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer, city, product, quantity)")
    database.execute("CREATE TABLE products (id INTEGER PRIMARY KEY, name, price, stock)")
    database.executemany("INSERT INTO orders (customer, city, product, quantity) VALUES (?, ?, ?, ?)", orders)
    database.executemany(
        "INSERT INTO products (name, price, stock) VALUES (?, ?, ?)",
        [(name, price / 100, stock) for name, price, stock in zip(PRODUCTS, prices, stocks, strict=True)],
    )
    database.execute("PRAGMA query_only = ON")
    # Called after that many steps of one statement; a true value aborts it.
    database.set_progress_handler(lambda: True, _MAX_STEPS)
    return database
