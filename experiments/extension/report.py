"""The table, from the records alone."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.intervals import median_interval

START = "<!-- table: python -m experiments.extension -->"
Records = Sequence[Mapping[str, Any]]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown. Each result has the `records` of one plan in both modes, and what extension counted in it."""
    lines = [
        "| sessions | answer, tokens | base computes in the turn: off, auto | ms to the first token: off, auto "
        "| auto / off (95 % interval) | tokens computed ahead, of these found |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        off, auto = (_by_turn(result["records"], mode) for mode in ("off", "auto"))
        ratio = median_interval([auto[key]["first_token_ms"] / off[key]["first_token_ms"] for key in off])
        computed, first = (
            ", ".join(f"{statistics.median(turn[field] for turn in mode.values()):,.0f}" for mode in (off, auto))
            for field in ("computed_tokens", "first_token_ms")
        )
        counted = ", ".join(f"{result['extension'][kind]:,}" for kind in ("computed", "hit"))
        record = result["records"][0]
        lines.append(
            f"| {record['plan']} | {record['answer']} | {computed} | {first} "
            f"| {ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) | {counted} |"
        )
    return "\n".join(lines)


def _by_turn(records: Records, mode: str) -> dict[tuple[int, ...], Mapping[str, Any]]:
    """Turns of one mode; a turn of the other mode has the same key when it is the one to compare with."""
    return {
        (record["round"], record["session"], record["turn"]): record for record in records if record["mode"] == mode
    }
