from experiments.extension.report import table


def test_turns_are_compared_with_their_twins() -> None:
    """The machine halves its speed from round to round; the modes' ratio stays what it is."""
    records = [
        {
            "plan": "alone",
            "answer": 256,
            "mode": mode,
            "round": number,
            "session": 0,
            "turn": 2,
            "computed_tokens": computed,
            "first_token_ms": ms * 2**number,
        }
        for number in (2, 0, 1)
        for mode, computed, ms in (("auto", 100, 80.0), ("off", 400, 200.0))
    ]
    lines = table([{"records": records, "extension": {"computed": 1500, "hit": 1024}}]).splitlines()
    assert lines[2:] == ["| alone | 256 | 400, 100 | 400, 160 | 0.40 (0.40 to 0.40) | 1,500, 1,024 |"]
