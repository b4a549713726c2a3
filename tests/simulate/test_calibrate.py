"""Costs and a pace that made synthetic runs are found in them again."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import (
    AS_MEASURED,
    Measured,
    Pace,
    StepTime,
    fit_batches,
    fit_from_outside,
    fit_pace,
    misses,
)
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import Cost, Link, Slowdown, WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord, Records, summarise
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson
from tests.simulate.shapes import MODELS, PREAMBLE, sessions

# About what one core does for a model of 135 million parameters.
TRUE = WorkerProfile(
    Cost(step_s=0.04, token_s=0.002, launch_s=0.01, pair_s=4e-8, sequence_s=0.004, kv_token_s=5e-7),
    Link(0.01, 1e9),
    kv_bytes_per_token=23_040,
    kv_tokens=40_000,
    block_size=16,
    leg_s=0.02,
)
GUESS = replace(TRUE, cost=Cost(step_s=1.0, token_s=1.0, sequence_s=0.001), link=Link(1.0, 1.0), leg_s=1.0)
SLOWER = Pace(factor=1.2, beside=1.3)
LAYOUT = Layout("shared", MODELS, prefill_devices=1, decode_devices=1)
OTHER = Layout("per-model", MODELS, prefill_devices=1, decode_devices=1)
COMPARED = ("latency_p50_s", "latency_p95_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "calls_per_s")


def measured(
    arrivals: Arrivals,
    layout: Layout = LAYOUT,
    number: int = 60,
    seed: int = 0,
    noise: float = 0.0,
    pace: Pace = AS_MEASURED,
    profile: WorkerProfile = TRUE,
) -> Measured:
    """A run by `TRUE` at this pace, as a client sees it, to be predicted by `profile`."""
    shapes: list[Shape] = [
        tuple(replace(call, output=4 * call.output) for call in shape) for shape in sessions(number, seed=seed)
    ]
    run = Measured(layout, profile, shapes, arrivals, Records(), PREAMBLE)
    made = replace(run, profile=TRUE).simulated(pace)
    draw = random.Random(seed)
    run.records.sessions += made.sessions
    run.records.calls += [_noisy(record, draw, noise) for record in made.calls]
    return run


def _noisy(record: CallRecord, draw: random.Random, noise: float) -> CallRecord:
    factor = draw.lognormvariate(0, noise)
    times = {name: getattr(record, name) * factor for name in ("ttft_s", "tpot_s", "latency_s")}
    return replace(record, queue_s=0.0, prefill_s=0.0, pulled_tokens=0, **times)


def errors(run: Measured, pace: Pace = AS_MEASURED) -> dict[str, float]:
    one, other = summarise(run.records), summarise(run.simulated(pace))
    return {name: other[name] / one[name] - 1 for name in COMPARED}


def test_what_a_client_sees_without_queues_is_enough_for_what_a_prompt_and_a_step_cost() -> None:
    found = fit_from_outside(measured(Closed(1)).records.calls, GUESS)
    for name, tolerance in (("token_s", 0.01), ("kv_token_s", 0.01)):
        assert getattr(found.cost, name) == pytest.approx(getattr(TRUE.cost, name), rel=tolerance), name
    step_s = found.cost.step_s + found.cost.sequence_s  # one sequence at a time does not tell them apart
    assert step_s == pytest.approx(TRUE.cost.step_s + TRUE.cost.sequence_s, rel=0.01)
    for name, error in errors(measured(Closed(1), seed=2, profile=found)).items():
        assert abs(error) < 0.03, name


def runs_to_fit_to(profile: WorkerProfile = TRUE, noise: float = 0.0, pace: Pace = SLOWER) -> Sequence[Measured]:
    return [
        measured(Closed(concurrent), layout, number=30, seed=1, noise=noise, pace=pace, profile=profile)
        for layout in (LAYOUT, OTHER)
        for concurrent in (1, 8)
    ]


def test_a_pace_is_found_in_the_runs_that_it_made() -> None:
    found = fit_pace(runs_to_fit_to())
    assert found.factor == pytest.approx(SLOWER.factor, rel=0.01)
    assert found.beside == pytest.approx(SLOWER.beside, rel=0.03)
    found = fit_pace(runs_to_fit_to(pace=AS_MEASURED))
    assert found.factor == pytest.approx(1, abs=0.01)
    assert found.beside == pytest.approx(1, abs=0.01)


def test_at_a_fitted_pace_other_loads_are_predicted() -> None:
    """With measurements that are 10 % off each, and costs that are a little off, too."""
    guess = replace(TRUE, cost=replace(TRUE.cost, sequence_s=0.9 * TRUE.cost.sequence_s, kv_token_s=1e-6))
    found = fit_pace(runs_to_fit_to(guess, noise=0.1))
    held_out = [
        measured(Closed(12), seed=2, pace=SLOWER, profile=guess),
        measured(Poisson(0.25), seed=3, pace=SLOWER, profile=guess),
        measured(Closed(4), OTHER, seed=4, pace=SLOWER, profile=guess),
    ]
    for run in held_out:
        missed = max(map(abs, errors(run).values()))
        for name, error in errors(run, found).items():
            assert abs(error) < min(0.12, missed), (name, error)


def test_what_work_does_to_other_work_is_not_fitted_where_it_was_measured() -> None:
    known = replace(TRUE, slowdown=Slowdown(1.0, 1.1, 1.2, 1.3))
    assert Pace(2.0, 1.5).of(known).slowdown == known.slowdown
    assert Pace(2.0, 1.5).of(TRUE).slowdown == Slowdown(1.5, 1.5, 1.5, 1.5)
    assert fit_pace(runs_to_fit_to(known)).beside == 1


def test_at_another_pace_everything_takes_as_many_times_as_long() -> None:
    slow = Pace(1.5).of(replace(TRUE, decode_cost=TRUE.cost))
    layout = (Closed(1), LAYOUT, 20)
    times = [summarise(measured(*layout, profile=profile).simulated())["latency_mean_s"] for profile in (TRUE, slow)]
    assert times[1] == pytest.approx(1.5 * times[0])
    assert slow.cost_of_decode == slow.cost
    assert AS_MEASURED.of(TRUE) == TRUE


def test_a_run_that_was_cut_off_is_fitted_as_far_as_it_went() -> None:
    whole = runs_to_fit_to()
    limit_s = 0.5 * max(run.records.sessions[-1][1] for run in whole)
    cut = [replace(run, records=run.records.until(limit_s), limit_s=limit_s) for run in whole]
    assert len(cut[0].records.calls) < len(whole[0].records.calls)
    found = fit_pace(cut)
    assert found.factor == pytest.approx(SLOWER.factor, rel=0.01)


def test_what_runs_do_not_have_is_not_fitted_to() -> None:
    one_token_each = [
        replace(run, shapes=[tuple(replace(call, output=1) for call in shape) for shape in run.shapes])
        for run in runs_to_fit_to()[:2]
    ]
    for run in one_token_each:
        run.records.calls[:] = run.simulated(SLOWER).calls
    assert fit_pace(one_token_each).factor == pytest.approx(SLOWER.factor, rel=0.05)
    with pytest.raises(UserError, match="no call that was answered"):
        fit_pace([*one_token_each, replace(one_token_each[0], records=Records())])


def test_costs_are_never_negative() -> None:
    records = [
        replace(record, tpot_s=0.05 - 1e-6 * record.prompt_tokens) for record in measured(Closed(1)).records.calls
    ]
    found = fit_from_outside(records, GUESS)
    assert found.cost.kv_token_s == 0
    several = [record.tpot_s for record in records if record.output_tokens > 1]
    assert found.cost.step_s + found.cost.sequence_s == pytest.approx(sum(several) / len(several))


def test_too_few_records_are_refused() -> None:
    with pytest.raises(UserError, match="at least 20 calls"):
        fit_from_outside(measured(Closed(1)).records.calls[:19], GUESS)


@pytest.mark.parametrize(
    "true",
    [
        Cost(step_s=0.04, token_s=0.002, sequence_s=0.004, kv_token_s=5e-7),  # arithmetic never limits
        Cost(step_s=0.02, token_s=0.004, sequence_s=0.001, kv_token_s=1e-6),  # it does from 5 sequences on
    ],
)
def test_steps_of_several_sizes_tell_what_a_sequence_costs(true: Cost) -> None:
    points = [
        StepTime(size, size * context, true.step(0, 0.0, size, size * context))
        for size in (1, 2, 4, 8, 16)
        for context in (128, 1024)
    ]
    found = fit_batches(replace(true, step_s=1.0, sequence_s=0.0, kv_token_s=0.0), points)
    for name in ("step_s", "sequence_s", "kv_token_s"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.01), name
    assert max(map(abs, misses(found, points))) < 0.01


def test_steps_of_one_size_tell_nothing() -> None:
    with pytest.raises(UserError, match=r"at least 3 sizes, found \[4\]"):
        fit_batches(TRUE.cost, [StepTime(4, 100, 0.1)] * 5)
