import pytest

from experiments.overload.load import Answer
from experiments.overload.summary import figures, table


def test_only_what_happened_after_the_warm_up_counts() -> None:
    answers = [
        Answer(0.0, 1.0, 200, 50, 0.5),
        Answer(1.0, 3.0, 200, 40, 1.5, waited_s=0.2),  # sent before, done in time
        Answer(2.0, 6.0, 200, 30, 3.0, waited_s=1.0),
        Answer(3.0, 3.01, 429, 0, retry_after=2),
        Answer(9.0, 12.0, 200, 20, 10.0),  # done too late
    ]
    found = figures(answers, seconds=10.0, warm_up_s=2.0)
    assert found["tokens_per_s"] == (40 + 30) / 8
    assert found["answered_per_s"] == 2 / 8
    assert found["arrived_per_s"] == 3 / 8
    assert found["refused_percent"] == pytest.approx(100 / 3)
    assert found["refusal_p50_s"] == pytest.approx(0.01)
    assert (found["p50_s"], found["p95_s"]) == (3.0, 4.0)
    assert found["queue_p95_s"] == 1.0
    assert found["first_token_p95_s"] == 1.0


def test_a_phase_without_refusals_has_none_to_wait_for() -> None:
    assert figures([Answer(2.0, 3.0, 200, 10)], 10.0, 2.0)["refusal_p99_s"] == 0.0


def test_a_phase_without_answers_says_so() -> None:
    with pytest.raises(ValueError, match="more seconds"):
        figures([Answer(3.0, 3.1, 429, 0)], 10.0, 2.0)


def test_the_table_has_the_ratios_of_each_round() -> None:
    def phase(p95: float, tokens: float) -> dict[str, float]:
        good = Answer(0.0, p95, 200, int(tokens), 0.1)
        return figures([good], 10.0, 0.0)

    rounds = [
        {"closed loop": phase(4, 100), "1x": phase(4, 100), "5x": phase(5, 100)},
        {"closed loop": phase(4, 100), "1x": phase(4, 100), "5x": phase(6, 90)},
    ]
    lines = table(rounds).splitlines()
    assert lines[0] == "| medians of 2 rounds | closed loop | 1x | 5x |"
    assert lines[-2].endswith("| 1.38 (1.25 to 1.50) |")
    assert lines[-1].endswith("| 0.95 (0.90 to 1.00) |")
