import pytest

from experiments.handoff_cost.client import MeasurementFailed
from experiments.handoff_cost.decode_speed import time_per_output_token


def test_one_stream_counts_from_its_second_token() -> None:
    assert time_per_output_token([[0.0, 5.0, 5.1, 5.2, 5.3]]) == pytest.approx(0.1)


def test_tokens_that_arrive_together_are_tokens_all_the_same() -> None:
    assert time_per_output_token([[0.0, 1.0, 1.2, 1.2]]) == pytest.approx(0.1)


def test_only_the_time_in_which_all_streams_decode_counts() -> None:
    """One stream begins while the other is prefilled, slowly, and ends early; both make a token in 0.1 s together."""
    early = [0.0, 1.0, 2.0, 3.0, *(3.1 + 0.1 * step for step in range(10))]
    late = [3.0, 3.1, *(3.2 + 0.1 * step for step in range(9)), 4.05, 4.1, 4.15]
    assert time_per_output_token([early, late]) == pytest.approx(0.1)


def test_the_order_within_a_step_does_not_matter() -> None:
    steps = [0.1 * step for step in range(6)]
    jittered = [[at + 0.01 * place for at in steps] for place in range(4)]
    assert time_per_output_token(jittered) == pytest.approx(0.1)


def test_streams_one_after_the_other_are_an_error() -> None:
    with pytest.raises(MeasurementFailed):
        time_per_output_token([[0.0, 0.1, 0.2], [1.0, 1.1, 1.2]])
