"""Questions to SQL over one table, generated. The wordings of the held-out questions never occur in training.

Table and columns are drawn anew for every item from what its domain offers, and shown in the prompt, so that they
have to be read there. Of the eight wordings of each kind of question, four are trained on, two are for validation
and two for the test; which ones, the seed decides. Answers are right when sqlite returns the gold query's rows from
three databases with random rows.
"""

import random

from experiments.accuracy.families.sql_tables import DOMAINS, Domain
from experiments.accuracy.families.sql_wordings import WORDINGS
from experiments.accuracy.items import Data, Family, Item, Size

_DATABASES = 3
_ROWS = 60
_PARTS = {"train": slice(0, 4), "validation": slice(4, 6), "test": slice(6, 8)}  # of a kind's wordings


_QUERIES = {
    "count": "SELECT COUNT(*) FROM {table} WHERE {text} = '{value}'",
    "above": "SELECT {key} FROM {table} WHERE {number} > {n}",
    "below": "SELECT {key} FROM {table} WHERE {number} < {n}",
    "highest": "SELECT MAX({number}) FROM {table}",
    "lowest": "SELECT MIN({number}) FROM {table}",
    "average": "SELECT AVG({number}) FROM {table} WHERE {text} = '{value}'",
    "sum": "SELECT SUM({number}) FROM {table} WHERE {text} = '{value}'",
    "top": "SELECT {key} FROM {table} ORDER BY {number} DESC LIMIT {k}",
    "bottom": "SELECT {key} FROM {table} ORDER BY {number} ASC LIMIT {k}",
    "groups": "SELECT {text}, COUNT(*) FROM {table} GROUP BY {text}",
    "kinds": "SELECT DISTINCT {text} FROM {table}",
    "lookup": "SELECT {number} FROM {table} WHERE {key} = '{name}'",
    "both": "SELECT COUNT(*) FROM {table} WHERE {text} = '{value}' AND {number} > {n}",
}


def build(seed: int, size: Size) -> Data:
    """Items of each part have wordings that no other part has."""
    rng = random.Random(f"sql {seed}")
    wordings = {kind: rng.sample(texts, len(texts)) for kind, texts in WORDINGS.items()}
    databases = {
        domain.tables[0]: [_script(domain, random.Random(number)) for number in range(_DATABASES)] for domain in DOMAINS
    }

    def draw(part: str, count: int) -> list[Item]:
        items: list[Item] = []
        seen: set[str] = set()
        while len(items) < count:
            item = _item(rng, {kind: texts[_PARTS[part]] for kind, texts in wordings.items()}, databases)
            if item.prompt[-1]["content"] not in seen:
                seen.add(item.prompt[-1]["content"])
                items.append(item)
        return items

    return Data(draw("train", size.train), draw("validation", size.validation), draw("test", size.test))


def _item(rng: random.Random, wordings: dict[str, list[str]], databases: dict[str, list[str]]) -> Item:
    domain = rng.choice(DOMAINS)
    table = rng.choice(domain.tables)
    texts, numbers = rng.sample(sorted(domain.texts), 2), rng.sample(sorted(domain.numbers), 2)
    columns = [*texts, *numbers]
    rng.shuffle(columns)
    text, number = rng.choice(texts), rng.choice(numbers)
    low, high = domain.numbers[number]
    parts = {
        "table": table,
        "key": domain.key,
        "text": text,
        "value": rng.choice(domain.texts[text]),
        "number": number,
        "n": rng.randrange(low + (high - low) // 5, high - (high - low) // 5),
        "k": rng.randrange(2, 8),
        "name": rng.choice(domain.names),
    }
    kind = rng.choice(sorted(_QUERIES))
    question = rng.choice(wordings[kind]).format(**parts)
    prompt = [
        {"role": "system", "content": "Answer the question with an SQL query on the table."},
        {"role": "user", "content": f"{table}({', '.join([domain.key, *columns])})\n\n{question}"},
    ]
    query = _QUERIES[kind].format(**parts)
    return Item(prompt, query, query, fields={"setup": databases[domain.tables[0]]})


def _script(domain: Domain, rng: random.Random) -> str:
    """Statements that make the domain's database: its table under every name, with the same rows."""
    columns = [domain.key, *domain.texts, *domain.numbers]
    rows = [
        [
            rng.choice(domain.names),
            *(rng.choice(values) for values in domain.texts.values()),
            *(rng.randint(low, high) for low, high in domain.numbers.values()),
        ]
        for _ in range(_ROWS)
    ]
    values = ", ".join("(" + ", ".join(map(repr, row)) + ")" for row in rows)
    first, *others = domain.tables
    statements = [
        f"CREATE TABLE {first} ({', '.join(columns)})",
        f"INSERT INTO {first} VALUES {values}",
        *(f"CREATE TABLE {other} AS SELECT * FROM {first}" for other in others),
    ]
    return ";\n".join(statements)


FAMILY = Family(
    name="sql",
    held_out="wording of the question",
    build=build,
    scorer="sql",
    steps=80,
    rates=(3e-4, 6e-4, 1.2e-3),
    max_new_tokens=48,
    longer=((3e-4, 2),),
    adapters=(1e-3, 2e-3, 4e-3),
)
