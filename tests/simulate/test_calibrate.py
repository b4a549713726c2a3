"""Costs that made synthetic runs are found in them again."""

import random
from dataclasses import replace

import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import (
    Measured,
    StepTime,
    errors,
    fit_alone,
    fit_batches,
    fit_from_outside,
    misses,
    refine,
)
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import Cost, Link, WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord, Records
from prefillshare.simulate.simulation import Simulation
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
LAYOUT = Layout("shared", MODELS, prefill_devices=1, decode_devices=1)


def measured(
    arrivals: Arrivals, layout: Layout = LAYOUT, number: int = 60, seed: int = 0, noise: float = 0.0
) -> Measured:
    shapes: list[Shape] = [
        tuple(replace(call, output=4 * call.output) for call in shape) for shape in sessions(number, seed=seed)
    ]
    records = Records()
    Simulation(layout, TRUE, shapes, arrivals, records, preamble_tokens=PREAMBLE).run()
    draw = random.Random(seed)
    return Measured(layout, shapes, arrivals, [_noisy(record, draw, noise) for record in records.calls], PREAMBLE)


def _noisy(record: CallRecord, draw: random.Random, noise: float) -> CallRecord:
    factor = draw.lognormvariate(0, noise)
    names = ("queue_s", "prefill_s", "ttft_s", "tpot_s", "latency_s")
    return replace(record, **{name: getattr(record, name) * factor for name in names})


def test_the_costs_of_a_run_without_queues_are_found_exactly() -> None:
    found = fit_alone(measured(Closed(1)).records, GUESS)
    for name, tolerance in (("token_s", 0.01), ("launch_s", 0.05), ("pair_s", 0.01), ("kv_token_s", 0.01)):
        assert getattr(found.cost, name) == pytest.approx(getattr(TRUE.cost, name), rel=tolerance), name
    step_s = found.cost.step_s + found.cost.sequence_s  # one sequence at a time does not tell them apart
    assert step_s == pytest.approx(TRUE.cost.step_s + TRUE.cost.sequence_s, rel=0.01)
    assert found.link.latency_s == pytest.approx(TRUE.link.latency_s, rel=0.05)
    assert found.link.bytes_per_s == pytest.approx(TRUE.link.bytes_per_s, rel=0.05)
    assert found.leg_s == pytest.approx(TRUE.leg_s)


def test_calibrated_on_some_runs_it_predicts_others() -> None:
    """With measurements that are 10 % off each, at other loads and for a system that it was not calibrated on."""
    alone = measured(Closed(1), noise=0.1)
    loaded = [measured(Closed(sessions), seed=1, noise=0.1) for sessions in (4, 12)]
    found = refine(fit_alone(alone.records, GUESS), loaded)
    held_out = [
        measured(Closed(8), seed=2),
        measured(Poisson(0.3), seed=3),
        measured(Closed(8), Layout("per-model", MODELS, prefill_devices=1, decode_devices=1), seed=4),
    ]
    for run in held_out:
        for name, (_, _, error) in errors(found, run).items():
            assert abs(error) < 0.12, (name, errors(found, run))


def test_what_a_client_sees_is_enough_to_predict_other_loads() -> None:
    def seen(run: Measured) -> Measured:
        hidden = {"queue_s": 0.0, "prefill_s": 0.0, "pulled_tokens": 0}
        return replace(run, records=[replace(record, **hidden) for record in run.records])

    alone = fit_from_outside(seen(measured(Closed(1))).records, GUESS)
    for name, (_, _, error) in errors(alone, measured(Closed(1), seed=2)).items():
        assert abs(error) < 0.03, name
    found = refine(alone, [seen(measured(Closed(sessions), seed=1)) for sessions in (4, 12)])
    for run in (measured(Closed(8), seed=2), measured(Poisson(0.3), seed=3)):
        for name, (_, _, error) in errors(found, run).items():
            assert abs(error) < 0.12, (name, errors(found, run))


def test_refining_finds_what_a_run_alone_does_not_show() -> None:
    alone = fit_alone(measured(Closed(1)).records, GUESS)
    start = replace(alone, cost=replace(alone.cost, step_s=0.043, sequence_s=0.001))
    found = refine(start, [measured(Closed(sessions), seed=1) for sessions in (4, 16)], ("step_s", "sequence_s"))
    assert found.cost.sequence_s == pytest.approx(TRUE.cost.sequence_s, rel=0.2)
    assert found.cost.step_s == pytest.approx(TRUE.cost.step_s, rel=0.1)


def test_errors_are_those_of_the_simulation() -> None:
    run = measured(Closed(4))
    assert all(error == pytest.approx(0, abs=1e-9) for _, _, error in errors(TRUE, run).values())
    slow = replace(TRUE, leg_s=1.0)
    _, _, error = errors(slow, run)["ttft_p50_s"]
    assert error > 0.5


def test_costs_are_never_negative() -> None:
    records = [replace(record, tpot_s=0.05 - 1e-6 * record.prompt_tokens) for record in measured(Closed(1)).records]
    found = fit_alone(records, GUESS)
    assert found.cost.kv_token_s == 0
    several = [record.tpot_s for record in records if record.output_tokens > 1]
    assert found.cost.step_s + found.cost.sequence_s == pytest.approx(sum(several) / len(several))


def test_too_few_records_are_refused() -> None:
    with pytest.raises(UserError, match="at least 20 calls"):
        fit_alone(measured(Closed(1)).records[:19], GUESS)
    with pytest.raises(UserError, match="at least 20 calls"):
        fit_from_outside([], GUESS)


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
