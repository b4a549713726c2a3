from typing import Any

from experiments.handoff_cost.report import PARTS, decode_table, turns_table


def test_decode_table_compares_within_a_round() -> None:
    """The machine halves its speed from round to round; the systems' ratio stays what it is."""
    records = [
        {"batch": batch, "round": number, "system": system, "tpot_ms": 40.0 * 2**number * factor}
        for batch in (4, 1)
        for number in (2, 0, 1)
        for system, factor in (("ours", 1.02), ("plain", 1.0))
    ]
    assert decode_table(records).splitlines()[2:] == [
        "| 1 | 80.0 | 81.6 | 1.020 (1.020 to 1.020) |",
        "| 4 | 80.0 | 81.6 | 1.020 (1.020 to 1.020) |",
    ]


def turn(session: int, number: int, first_token_ms: float) -> dict[str, Any]:
    return {
        "session": session,
        "turn": number,
        "prompt_tokens": 2000 if number == 1 else 2096,
        "computed_tokens": 2000 if number == 1 else 176,
        "pulled_mb": 47.2 if number == 1 else 3.0,
        "first_token_ms": first_token_ms,
        "parts_ms": dict.fromkeys(PARTS, 1.5),
    }


def test_turns_table_has_every_part_and_the_ratio_of_the_sessions() -> None:
    records = [
        turn(session, number, 4000.0 if number == 1 else 400.0 + session) for session in range(3) for number in (1, 2)
    ]
    lines = turns_table(records).splitlines()
    assert "| tokens the base computed | 2,000 | 176 |" in lines
    assert "| **ms to the first token** | 4,000 | 401 |" in lines
    assert sum(line.endswith("| 1.5 | 1.5 |") for line in lines) == len(PARTS)
    assert lines[-1].endswith("| 0.100 (0.100 to 0.101) |")
