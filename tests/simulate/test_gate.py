from dataclasses import replace

import pytest

from prefillshare.router_config import FlowConfig
from prefillshare.simulate.calls import Call, Prompts, Run, Shape
from prefillshare.simulate.gate import Gate, Room
from prefillshare.simulate.layout import Layout, Role
from prefillshare.simulate.records import Records, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.workloads.arrivals import Closed
from tests.simulate.shapes import MODELS, PROFILE

LAYOUT = Layout("shared", MODELS)
TURNS, NEW, OUTPUT = 8, 400, 8  # of a session: calls, and tokens that each adds to the context


def session() -> Shape:
    calls, context = [], 0
    for turn in range(TURNS):
        context += NEW
        calls.append(Call(MODELS[turn % 2], 0, context, context, OUTPUT, 0.0))
        context += OUTPUT
    return tuple(calls)


def played(flow: FlowConfig | None, at_a_time: int = 12) -> Records:
    """On a prefill worker whose cache holds five sessions at their end."""
    records = Records()
    profile = replace(PROFILE, kv_tokens=16_000, decode_kv_tokens=64_000)
    Simulation(LAYOUT, profile, [session() for _ in range(36)], Closed(at_a_time), records, flow=flow).run()
    return records


def test_with_more_sessions_than_caches_hold_those_that_are_cached_are_finished_first() -> None:
    in_order = summarise(played(FlowConfig(prefill_tokens=2000, cached_first_s=0)))
    cached_first = summarise(played(FlowConfig(prefill_tokens=2000, cached_first_s=1e9)))
    few = summarise(played(None, at_a_time=4))
    assert in_order["hit_ratio"] < 0.3
    assert cached_first["hit_ratio"] > 0.9 * few["hit_ratio"]
    assert cached_first["calls_per_s"] > 2 * in_order["calls_per_s"]


def test_calls_wait_in_front_of_workers_that_have_enough_to_compute_and_the_wait_counts() -> None:
    for flow in (None, FlowConfig(prefill_tokens=500, cached_first_s=1e9)):
        records = played(flow, at_a_time=3)
        assert len(records.sessions) == 36
        waits = [record.queue_s for record in records.calls]
        assert (max(waits) > 0.1) == (flow is not None)


def test_who_has_waited_long_goes_first_though_others_are_cached() -> None:
    long, short = (played(FlowConfig(prefill_tokens=500, cached_first_s=limit_s)) for limit_s in (1e9, 0.5))
    assert summarise(long)["hit_ratio"] > 0.7
    assert summarise(short)["hit_ratio"] < 0.3  # as everybody waits that long, it is the order of arrival again


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_a_worker_with_nothing_to_do_takes_any_call(tokens: int) -> None:
    simulation = Simulation(LAYOUT, PROFILE, [], Closed(1), Records())
    begun: list[float] = []
    gate = make_gate(simulation, FlowConfig(prefill_tokens=tokens))
    gate.call(1.0, Run(0, session(), 1.0), lambda now, run, room: begun.append(now))
    assert begun == [1.0]


def make_gate(simulation: Simulation, flow: FlowConfig, decode: int = 64_000, calls: int = 16) -> Gate:
    kv_tokens: dict[Role, int] = {"prefill": 64_000, "decode": decode}
    return Gate(simulation.deployment.placement, Prompts(0), flow, kv_tokens=kv_tokens, max_num_seqs=calls)


@pytest.mark.parametrize(("decode", "calls"), [(1100, 16), (64_000, 2)])
def test_calls_wait_for_room_on_their_decode_worker_and_stop_no_other_model(decode: int, calls: int) -> None:
    """Of calls of 400 + 8 tokens, two fit into 0.9 of 1,100."""
    simulation = Simulation(LAYOUT, PROFILE, [], Closed(1), Records())
    gate = make_gate(simulation, FlowConfig(prefill_tokens=10_000), decode, calls)
    rooms: dict[int, Room] = {}
    turned = session()[1:] + session()[:1]  # which begins with the other model, and 800 tokens
    for number, shape in enumerate((session(), session(), session(), turned)):
        gate.call(0.0, Run(number, shape, 0.0), lambda now, run, room: rooms.setdefault(run.number, room))
    assert list(rooms) == [0, 1, 3]
    route = simulation.deployment.routes[MODELS[0]]
    prefiller, decoder = route.prefill.workers[0], route.decode.workers[0]
    rooms[0].prefill(prefiller)
    rooms[0].choose_decode()
    with route.decode.lease(decoder, 408):
        rooms[0].decode(decoder)
        rooms[0].pulled(1.0)
        assert 2 not in rooms
    rooms[0].decoded(2.0)
    assert 2 in rooms


def test_all_that_calls_took_is_given_back() -> None:
    profile = replace(PROFILE, kv_tokens=16_000, decode_kv_tokens=8_000)
    flow = FlowConfig(prefill_tokens=2000, cached_first_s=1e9)
    simulation = Simulation(LAYOUT, profile, [session() for _ in range(20)], Closed(8), Records(), flow=flow)
    simulation.run()
    deployment = simulation.deployment
    pools = {pool for route in deployment.routes.values() for pool in (route.prefill, route.decode)}
    gate = deployment._gate
    assert gate
    assert [(pool.load(worker), gate.held.tokens(worker)) for pool in pools for worker in pool.workers] == [(0, 0)] * 3
