import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.simulate.cost import Cost

COST = Cost(step_s=0.01, token_s=0.001, launch_s=0.002, pair_s=1e-6, sequence_s=1e-4, kv_token_s=1e-6)


def test_a_step_reads_the_weights_once_or_computes_for_longer() -> None:
    assert COST.step(0, 0, 1, 100) == pytest.approx(0.01 + 1e-4 + 1e-4)
    assert COST.step(5, 15, 0, 0) == pytest.approx(0.01 + 15e-6)
    assert COST.step(50, 0, 0, 0) == pytest.approx(0.052)


def test_many_sequences_are_computed_for_longer_than_the_weights_are_read() -> None:
    cost = Cost(step_s=0.01, token_s=0.001, launch_s=0.002)
    assert [cost.step(0, 0, sequences, 0) for sequences in (1, 8, 20)] == pytest.approx([0.01, 0.01, 0.022])
    assert cost.step(30, 0, 20, 0) == pytest.approx(0.052)


@given(count=st.integers(1, 300), sequences=st.integers(1, 100), kv_tokens=st.integers(0, 100_000))
def test_many_steps_are_the_sum_of_single_ones(count: int, sequences: int, kv_tokens: int) -> None:
    single = sum(COST.step(0, 0, sequences, kv_tokens + sequences * index) for index in range(count))
    assert COST.steps(count, sequences, kv_tokens) == pytest.approx(single)


@given(
    kv_token_s=st.sampled_from((0.0, 1e-9, 1e-6)),
    passed=st.integers(0, 300),
    part=st.floats(0.01, 0.99),
    sequences=st.integers(1, 100),
    kv_tokens=st.integers(0, 100_000),
)
def test_the_step_that_time_falls_into_is_found(
    kv_token_s: float, passed: int, part: float, sequences: int, kv_tokens: int
) -> None:
    cost = Cost(step_s=0.01, token_s=0.001, sequence_s=1e-4, kv_token_s=kv_token_s)
    before, after = (cost.steps(count, sequences, kv_tokens) for count in (passed, passed + 1))
    assert cost.steps_begun(before + part * (after - before), sequences, kv_tokens) == passed + 1


def test_at_the_very_beginning_one_step_has_begun() -> None:
    assert COST.steps_begun(0.0, 1, 100) == 1
