from dataclasses import replace

import pytest

from prefillshare.bench.bound import bound
from prefillshare.simulate.cost import Cost, Link, WorkerProfile

PROFILE = WorkerProfile(
    Cost(step_s=0.1, token_s=0.01, pair_s=0.001, sequence_s=0.02, kv_token_s=0.0001),
    Link(0.0, 1000.0),
    kv_bytes_per_token=10,
    kv_tokens=1000,
    leg_s=0.5,
)
FACTS = {
    "system": "shared",
    "load": "closed:2",
    "machine": {"prefill_cores": [0], "decode_cores": [1], "max_num_seqs": 16},
}


def call(session: str, prompt: int, new: int, output: int) -> dict[str, object]:
    return {"session": session, "prompt_tokens": prompt, "new_tokens": new, "output_tokens": output}


CALLS = [call("a", 100, 100, 10), call("a", 130, 20, 10), call("b", 100, 100, 10)]
PREFILL = [1.0 + 0.001 * 100 * 50.5, 0.2 + 0.001 * 20 * (110 + 10.5), 1.0 + 0.001 * 100 * 50.5]


def test_every_limit_is_the_work_at_its_cost() -> None:
    found = bound(FACTS, CALLS, {}, PROFILE)
    assert found is not None
    assert found.prefill_s == pytest.approx(sum(PREFILL))
    steps = [10 * (0.1 + 0.02 * 2 + 0.0001 * 2 * read) / 2 for read in (105, 135, 105)]  # two calls in a batch
    assert found.decode_s == pytest.approx(sum(steps))
    assert found.handoff_s == pytest.approx(220 * 10 / 1000)
    longest = 4 * 0.5 + PREFILL[0] + PREFILL[1] + 10 * (2 * 0.12 + 0.0001 * (105 + 135))
    assert found.session_s == pytest.approx(longest)
    assert (found.limit, found.seconds) == ("prompts", pytest.approx(sum(PREFILL)))


def test_a_closed_loop_takes_as_long_as_its_sessions_in_turn() -> None:
    """With one at a time nothing overlaps, neither prompts with answers nor thinking with either."""
    alone = bound(FACTS | {"load": "closed:1"}, CALLS, {"a": 7.0, "b": 11.0}, PROFILE)
    two = bound(FACTS, CALLS, {"a": 7.0, "b": 11.0}, PROFILE)
    opened = bound(FACTS | {"load": "poisson:0.1"}, CALLS, {}, PROFILE)
    assert alone
    assert two
    assert opened
    work = 6 * 0.5 + sum(PREFILL) + 10 * (3 * 0.12 + 0.0001 * (105 + 135 + 105))
    assert (alone.limit, alone.seconds) == ("sessions in turn", pytest.approx(work + 18.0))
    assert two.turns_s == pytest.approx((work + 18.0) / 2)
    assert two.session_s == pytest.approx(4 * 0.5 + PREFILL[0] + PREFILL[1] + 10 * (0.24 + 0.0001 * 240) + 7.0)
    assert opened.turns_s == 0


def test_cores_of_both_kinds_of_workers_bound_their_work_together() -> None:
    apart = bound(FACTS, CALLS, {}, PROFILE)
    machine = FACTS["machine"] | {"prefill_cores": [0, 1], "decode_cores": [1, 0]}
    mixed = bound(FACTS | {"machine": machine}, CALLS, {}, PROFILE)
    assert apart
    assert mixed
    half = (apart.prefill_s + apart.decode_s) / 2
    assert (mixed.prefill_s, mixed.decode_s) == (pytest.approx(half), pytest.approx(half))


def test_more_cores_bound_less_and_ordinary_vllms_have_all_for_both() -> None:
    one = bound(FACTS, CALLS, {}, PROFILE)
    two = bound(FACTS | {"machine": FACTS["machine"] | {"prefill_cores": [0, 2]}}, CALLS, {}, PROFILE)
    both = bound(FACTS | {"system": "colocated"}, CALLS, {}, PROFILE)
    assert one
    assert two
    assert both
    assert two.prefill_s == pytest.approx(one.prefill_s / 2)
    assert two.decode_s == one.decode_s
    # The first of ten tokens comes with the prompt.
    assert both.prefill_s == both.decode_s == pytest.approx((one.prefill_s + 0.9 * one.decode_s) / 2)
    assert both.handoff_s == 0


@pytest.mark.parametrize(("system", "cores"), [("colocated", 1), ("colocated-lora", 2)])
def test_an_ordinary_vllm_serves_a_call_in_one_leg(system: str, cores: int) -> None:
    """Whose only token comes with the prompt."""
    alone = bound(FACTS | {"system": system, "load": "closed:1"}, [call("a", 100, 100, 1)], {}, PROFILE)
    assert alone
    assert alone.seconds == pytest.approx(0.5 + PREFILL[0] / cores)


def test_an_engine_on_all_cores_may_be_that_many_times_as_fast_with_twice_the_batch() -> None:
    machine = FACTS["machine"] | {"max_num_seqs": 1}
    both = bound(FACTS | {"system": "colocated", "machine": machine | {"max_num_seqs": 2}}, CALLS, {"a": 7.0}, PROFILE)
    wide = bound(FACTS | {"system": "colocated-lora", "machine": machine}, CALLS, {"a": 7.0}, PROFILE)
    assert both
    assert wide
    assert (wide.prefill_s, wide.decode_s, wide.handoff_s) == (both.prefill_s, both.decode_s, 0)
    alone = PREFILL[0] + PREFILL[1] + 9 * (0.24 + 0.0001 * 240)
    assert both.session_s == pytest.approx(2 * 0.5 + alone + 7.0)
    assert wide.session_s == pytest.approx(2 * 0.5 + alone / 2 + 7.0)
    assert wide.turns_s < both.turns_s


def test_adapters_make_nothing_less_possible() -> None:
    slow = replace(PROFILE, decode_cost=Cost(step_s=9.0, token_s=9.0))
    assert bound(FACTS | {"system": "shared-lora"}, CALLS, {}, slow) == bound(FACTS, CALLS, {}, PROFILE)


def test_an_open_loop_may_fill_a_worker() -> None:
    closed, opened = bound(FACTS, CALLS, {}, PROFILE), bound(FACTS | {"load": "poisson:0.1"}, CALLS, {}, PROFILE)
    assert closed
    assert opened
    assert opened.decode_s < closed.decode_s


def test_records_that_do_not_say_what_was_new_have_no_bound() -> None:
    assert bound(FACTS, [{"session": "a"}], {}, PROFILE) is None
    assert bound(FACTS, [], {}, PROFILE) is None
