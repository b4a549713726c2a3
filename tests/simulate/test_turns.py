"""Turns on a device that decode workers share, in simulated time."""

from itertools import pairwise

import pytest

from prefillshare.router_config import FlowConfig
from prefillshare.simulate.calls import Call, Shape
from prefillshare.simulate.cost import Cost, Link, WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord, Records, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.workloads.arrivals import Closed

# A step costs much and a sequence in it little, as where weights are read for each.
COST = Cost(step_s=0.05, token_s=0.0002, sequence_s=0.001)
PROFILE = WorkerProfile(COST, Link(0.0, 1e9), kv_bytes_per_token=1000, kv_tokens=64_000, leg_s=0.01)
MODELS = ("a", "b", "c", "d")
OUTPUT = 20


def session(number: int) -> Shape:
    """Calls the models in turn, beginning with another one than the session before."""
    return tuple(
        Call(MODELS[(number + turn) % 4], 0, 100 * turn, 100 * (turn + 1), OUTPUT, 0.0) for turn in range(1, 9)
    )


def played(turn_s: float, decode_devices: int = 1) -> list[CallRecord]:
    records = Records()
    layout = Layout("shared", MODELS, decode_devices=decode_devices)
    Simulation(layout, PROFILE, map(session, range(24)), Closed(8), records, flow=FlowConfig(turn_s=turn_s)).run()
    return records.calls


def rate(calls: list[CallRecord]) -> float:
    records = Records()
    records.calls += calls
    return summarise(records)["calls_per_s"]


def test_calls_of_a_model_gather_while_another_one_computes() -> None:
    without, turns = played(0.0), played(5.0)
    assert rate(turns) > 1.2 * rate(without)
    assert summed(turns, "tpot_s") < 0.7 * summed(without, "tpot_s")


def test_on_devices_of_their_own_models_need_no_turns() -> None:
    assert played(5.0, decode_devices=4) == played(0.0, decode_devices=4)


def test_short_turns_change_little() -> None:
    assert rate(played(0.05)) == pytest.approx(rate(played(0.0)), rel=0.1)


def test_one_model_computes_at_a_time_as_long_as_nobody_waits_for_long() -> None:
    calls = sorted(played(1e6), key=lambda call: call.arrived_s + call.ttft_s)
    first = {call: call.arrived_s + call.ttft_s for call in calls}
    for one, other in pairwise(calls):
        if one.model != other.model:
            assert first[other] >= one.arrived_s + one.latency_s


def summed(calls: list[CallRecord], name: str) -> float:
    return sum(getattr(call, name) for call in calls)
