"""The table of docs/security.md, from the record alone."""

from collections.abc import Mapping
from typing import Any

from experiments.hostile.cases import SHARES

START = "<!-- table: python -m experiments.hostile -->"
KINDS = {
    "fields": "wrong types and odd values in up to four fields",
    "forged": "transfer parameters of the client's own",
    "json": "bodies that are not quite JSON, among them 200,000 levels deep",
    "large": "bodies of 0.25 to 9 MB",
    "headers": "headers that are many, long, doubled or contradictory",
    "protocol": "garbage, pipelines, other methods and paths",
    "slow": "requests in small pieces, or without an end",
    "leaves": "clients that leave in the middle",
    "keys": "no key, half a key, two keys",
    "sessions": "other tenants' sessions and salts",
}


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a row for each kind with how its requests were answered, and what came of the honest sessions."""
    lines = ["| kind of request | requests | answered |", "|---|---|---|"]
    for kind in SHARES:
        if answers := record["answers"].get(kind):
            parts = ", ".join(f"{label}: {count:,}" for label, count in answers.items())
            lines.append(f"| {KINDS[kind]} | {record['sent'][kind]:,} | {parts} |")
    honest = record["honest"]
    refused = sum(honest["refused"].values())
    lines += [
        "",
        f"{record['cases']:,} requests of seed {record['seed']} in {record['seconds']:,.0f} s, 32 at a time. Meanwhile "
        f"{honest['calls']:,} honest calls (median {honest['median_seconds']} s), of which {honest['wrong']} had "
        f"another answer than the reference; {refused} were refused with a 429 or 503 first. Problems: "
        f"{len(record['problems'])}.",
    ]
    return "\n".join(lines)
