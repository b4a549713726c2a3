from dataclasses import replace

import pytest

from prefillshare.simulate.calls import Call
from prefillshare.simulate.keeping_up import KeptUp, Slowing, done
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord
from tests.simulate.shapes import MODELS

CALL = CallRecord(
    session="s",
    turn=0,
    model="planner",
    arrived_s=0.0,
    queue_s=0.1,
    prefill_s=0.2,
    ttft_s=0.4,
    tpot_s=0.01,
    latency_s=1.4,
    prompt_tokens=100,
    cached_tokens=0,
    output_tokens=101,
    pulled_tokens=100,
)
SHAPES = [tuple(Call(model, 0, 100, 100, 101, 0.0) for model in (*MODELS, "actor"))]  # the actor is called twice
HOUR = 3600.0


def slower(record: CallRecord, *, leg_1: float = 0.0, handoff: float = 0.0, token: float = 0.0) -> CallRecord:
    ttft_s = record.ttft_s + leg_1 + handoff
    latency_s = ttft_s + (record.tpot_s + token) * (record.output_tokens - 1)
    return replace(record, queue_s=record.queue_s + leg_1, ttft_s=ttft_s, latency_s=latency_s)


def told(layout: Layout, *later: CallRecord) -> KeptUp:
    """Of an hour in which the first half is like `CALL`."""
    slowing = Slowing(0.0, HOUR)
    for model in MODELS:
        for at in range(0, 1800, 100):
            slowing.call(replace(CALL, model=model, arrived_s=float(at)))
    for record in later:
        for at in range(1801, 3600, 100):
            slowing.call(replace(record, arrived_s=float(at)))
    return slowing.kept_up(layout, SHAPES)


def test_work_that_arrives_is_told_from_work_done() -> None:
    assert done(0.0) == 1
    assert done(1e-9) == pytest.approx(1)
    assert done(0.2) == pytest.approx(0.906, abs=0.001)
    assert done(1.5936) == pytest.approx(0.5, abs=0.001)
    assert done(-5.0) == 1, "calls that get faster are kept up with"


def test_the_legs_tell_which_pools_are_behind() -> None:
    planner, actor = CALL, replace(CALL, model="actor")
    shared, per_model = Layout("shared", MODELS), Layout("per-model", MODELS)
    assert told(shared, planner, actor) == KeptUp((1.0,), (1.0, 1.0))
    # The session's two calls to the actor take 360 s more after half an hour, both together 0.4 s more each second.
    late = slower(actor, leg_1=360.0)
    assert told(shared, planner, late) == KeptUp((pytest.approx(done(0.4)),), (1.0, 1.0))
    assert told(per_model, planner, late) == KeptUp((1.0, pytest.approx(done(0.4))), (1.0, 1.0))
    for late in (slower(actor, handoff=360.0), slower(actor, token=3.6)):
        assert told(shared, planner, late) == KeptUp((1.0,), (1.0, pytest.approx(done(0.4))))
    together = told(Layout("colocated", MODELS), planner, slower(actor, leg_1=180.0, token=1.8))
    assert together == KeptUp((), (1.0, pytest.approx(done(0.4))))
    assert together.least == together.decode[1]


def test_a_pool_is_told_by_all_its_models() -> None:
    late = [slower(replace(CALL, model=model), leg_1=360.0, handoff=360.0) for model in MODELS]
    found = told(Layout("shared", MODELS, decode_pools=1), *late)
    assert found == KeptUp((pytest.approx(done(0.6)),), (pytest.approx(done(0.6)),))


def test_longer_outputs_are_no_slower() -> None:
    long = replace(CALL, output_tokens=401, latency_s=4.4)
    assert told(Layout("shared", MODELS), long, replace(long, model="actor")).least == pytest.approx(1.0)


def test_of_a_model_without_calls_nothing_is_said() -> None:
    assert Slowing(0.0, HOUR).kept_up(Layout("shared", MODELS), SHAPES).least == 1
    assert told(Layout("shared", MODELS), CALL).least == 1
