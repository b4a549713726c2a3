"""A query, by what it returns: the answer and the expected query run on the databases that `setup` creates.

`setup` is a script (CREATE TABLE, INSERT) or a list of them. With several the answer has to be right on every one,
which a query that is right by chance seldom is. Rows are compared as a multiset, or in order if the expected query
has an ORDER BY of its own; names of columns do not matter, their order does. An answer that is not one SELECT is
wrong and is never run; whatever is run can only read, and is stopped after a number of steps or seconds (between two
steps: a single call such as printf('%.*c', 2000000000, 'x') keeps sqlite busy for longer).
"""

import re
import sqlite3
import time
from collections import Counter
from functools import lru_cache

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers.text import unfenced

SECONDS = 5.0
_STEPS = 50_000_000  # of sqlite's virtual machine, about five seconds of them
_STEPS_A_CHECK = 10_000
# What one step may be made to handle: without these a single function call could fill the memory or run for minutes.
_LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000}

_SELECT = re.compile(r"\s*(SELECT|WITH)\b", re.IGNORECASE)
_ORDER_BY = re.compile(r"\bORDER\s+BY\b", re.IGNORECASE)
# Texts, quoted names and comments: what may hold parentheses and key words that mean nothing.
_OPAQUE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")

Row = tuple[object, ...]


def is_right(answer: str, item: Item) -> bool:
    query = unfenced(answer)
    try:
        return all(_agree(setup, query, str(item.expected)) for setup in item.texts("setup"))
    except (sqlite3.Error, sqlite3.Warning, ValueError):  # ValueError: surrogates or a null character
        return False


def check(item: Item) -> None:
    """Runs the expected query, so that a mistake in the data is not counted as every model's mistake."""
    if not isinstance(item.expected, str) or not _SELECT.match(_OPAQUE.sub(" ", item.expected)):
        raise BadField("expected", f"expected a SELECT, found {item.expected!r:.80}")
    for setup in item.texts("setup"):
        try:
            _database(setup)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise BadField("setup", f"sqlite: {error}") from None
        try:
            _run(setup, item.expected)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise BadField("expected", f"sqlite: {error}") from None


def _agree(setup: str, query: str, expected: str) -> bool:
    if not _SELECT.match(_OPAQUE.sub(" ", query)):
        return False
    wanted = _run(setup, expected)
    found = _run(setup, query, most=len(wanted) + 1)
    return found == wanted if is_ordered(expected) else Counter(found) == Counter(wanted)


def is_ordered(query: str) -> bool:
    """Whether the query itself, not a subquery or a window in it, has an ORDER BY."""
    outside, found = _OPAQUE.sub(" ", query), 1
    while found:
        outside, found = _INNERMOST.subn(" ", outside)
    return _ORDER_BY.search(outside) is not None


def _run(setup: str, query: str, most: int = -1) -> list[Row]:
    """The rows, at most `most` of them. Raises sqlite3.Error when the query fails, writes or takes too long."""
    database = sqlite3.connect(":memory:")
    try:
        database.deserialize(_database(setup))
        database.execute("PRAGMA query_only = ON")
        for limit, value in _LIMITS.items():
            database.setlimit(limit, value)
        checks, end = iter(range(_STEPS // _STEPS_A_CHECK)), time.monotonic() + SECONDS
        # A true value aborts the query.
        database.set_progress_handler(lambda: next(checks, None) is None or time.monotonic() > end, _STEPS_A_CHECK)
        cursor = database.execute(query)
        rows = cursor.fetchall() if most < 0 else cursor.fetchmany(most)
        return [tuple(map(_comparable, row)) for row in rows]
    finally:
        database.close()


@lru_cache(maxsize=16)
def _database(setup: str) -> bytes:
    """The database as a file's content, so that every query gets its own copy."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(setup)
        return database.serialize()
    finally:
        database.close()


def _comparable(value: object) -> object:
    """Sums and means depend on the order of their terms in the last digits."""
    return float(f"{value:.12g}") if isinstance(value, float) and not value.is_integer() else value
