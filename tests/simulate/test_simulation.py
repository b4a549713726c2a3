import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefillshare.errors import UserError
from prefillshare.router_config import FlowConfig
from prefillshare.simulate.calls import Call, Shape
from prefillshare.simulate.cost import Cost, Link, Slowdown, WorkerProfile
from prefillshare.simulate.layout import Layout, SystemName
from prefillshare.simulate.records import CallRecord, Records, summarise
from prefillshare.simulate.simulation import Outcome, Simulation, intervals
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson, Trace
from tests.simulate.shapes import COST, MODELS, PREAMBLE, PROFILE, sessions

SHARED = Layout("shared", MODELS)
LAYOUTS = (
    SHARED,
    Layout("shared", MODELS, prefill_workers=3, decode_workers=2, decode_pools=1),
    Layout("per-model", MODELS),
    Layout("per-model", MODELS, prefill_devices=1, decode_devices=1),
    Layout("colocated", MODELS, decode_workers=2),
    Layout("per-model", MODELS, prefill_workers=2, decode_pools=1),
    Layout("colocated", MODELS, decode_workers=3, decode_pools=1),
)


def run(
    layout: Layout,
    shapes: list[Shape],
    arrivals: Arrivals,
    profile: WorkerProfile = PROFILE,
    preamble: int = PREAMBLE,
    flow: FlowConfig | None = None,
) -> tuple[Records, Outcome, Simulation]:
    records = Records()
    simulation = Simulation(layout, profile, shapes, arrivals, records, preamble_tokens=preamble, flow=flow)
    return records, simulation.run(), simulation


@settings(deadline=None, max_examples=40)
@given(
    layout=st.sampled_from(LAYOUTS),
    arrivals=st.sampled_from((Poisson(0.5), Poisson(20.0), Closed(1), Closed(9))),
    kv_tokens=st.sampled_from((2_000, 3_000, 64_000)),
    leg_s=st.sampled_from((0.0, 0.01)),
    seed=st.integers(0, 1000),
    flow=st.sampled_from((None, FlowConfig(), FlowConfig(prefill_tokens=1), FlowConfig(cached_first_s=0))),
    slowdown=st.sampled_from((None, Slowdown(1.1, 1.5, 2.0, 1.3))),
)
def test_every_call_is_answered_once_and_every_token_of_it_accounted_for(
    layout: Layout,
    arrivals: Arrivals,
    kv_tokens: int,
    leg_s: float,
    seed: int,
    flow: FlowConfig | None,
    slowdown: Slowdown | None,
) -> None:
    shapes = sessions(15, seed=seed)
    profile = replace(PROFILE, kv_tokens=kv_tokens, leg_s=leg_s, slowdown=slowdown)
    records, outcome, simulation = run(layout, shapes, arrivals, profile, flow=flow)
    answered = Counter((int(record.session), record.turn) for record in records.calls)
    assert answered == Counter({(number, turn): 1 for number, shape in enumerate(shapes) for turn in range(len(shape))})
    assert len(records.sessions) == len(shapes)
    workers = simulation.deployment.workers
    computed = Counter[str]()
    for record in records.calls:
        call = shapes[int(record.session)][record.turn]
        assert (record.prompt_tokens, record.output_tokens) == (call.prompt, call.output)
        assert 0 <= record.cached_tokens < call.prompt
        assert 0 <= record.pulled_tokens <= call.prompt
        assert 0 < record.ttft_s <= record.latency_s
        assert record.queue_s >= leg_s - 1e-9
        computed[record.prefill_worker] += record.prompt_tokens - record.cached_tokens
    for name, worker in workers.items():
        assert worker.computed_tokens == computed[name]
        assert worker.cache.peak_in_use <= worker.cache.blocks == kv_tokens // PROFILE.block_size
        assert worker.cache.in_use == 0
    assert outcome.peak_kv_tokens <= kv_tokens
    for route in simulation.deployment.routes.values():
        for pool in (route.prefill, route.decode):
            assert all(pool.load(worker) == pool.in_flight(worker) == 0 for worker in pool.workers)
    assert all(0 <= share <= 1 + 1e-9 for share in outcome.busy.values())


def test_steps_of_decode_workers_may_cost_something_else() -> None:
    """Then what is prefill takes as long as before, and each further token as long as it costs."""
    slow = replace(COST, step_s=10 * COST.step_s, token_s=2 * COST.token_s)
    shapes = [(Call("planner", 0, 600, 620, 11, 0.0),)]
    one, other = (
        run(SHARED, shapes, Closed(1), profile)[0] for profile in (PROFILE, replace(PROFILE, decode_cost=slow))
    )
    assert other.calls[0].prefill_s == one.calls[0].prefill_s
    assert other.calls[0].tpot_s - one.calls[0].tpot_s == pytest.approx(9 * COST.step_s)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_seed_gives_the_same_run_and_another_one_does_not(layout: Layout) -> None:
    shapes = sessions(20)
    first, second, other = (run(layout, shapes, Poisson(5.0, seed))[0].calls for seed in (1, 1, 2))
    assert first == second
    assert first != other


def alone(call: Call, cost: Cost = COST, pulled: int | None = None) -> float:
    """The time to the first token with nobody else there and nothing cached."""
    size = (call.prompt if pulled is None else pulled) * PROFILE.kv_bytes_per_token
    prefill = cost.step(call.prompt, call.prompt * (call.prompt + 1) / 2, 0, 0)
    return prefill + PROFILE.link.latency_s + size / PROFILE.link.bytes_per_s + cost.steps(1, 1, call.prompt)


def test_at_a_tiny_load_nobody_waits() -> None:
    draw = random.Random(0)
    shapes = [(Call("planner", 0, 400, draw.randint(400, 900), 5, 0.0),) for _ in range(30)]
    records, _, _ = run(SHARED, shapes, Poisson(0.001), preamble=0)
    for record in records.calls:
        call = shapes[int(record.session)][0]
        assert record.queue_s == 0
        assert record.ttft_s == pytest.approx(alone(call))
        assert record.latency_s == pytest.approx(record.ttft_s + COST.steps(4, 1, call.prompt + 1))


def test_a_single_prefill_worker_is_an_m_d_1_queue() -> None:
    """Of prompts that fill a step each, so that none is computed beside another (Pollaczek and Khinchine's formula)."""
    prompt, service_s, load = 1000, 0.5, 0.7
    profile = replace(
        PROFILE,
        cost=Cost(step_s=1e-9, token_s=service_s / prompt),
        max_num_batched_tokens=prompt,
        max_num_seqs=1,
        link=Link(0.0, 1e15),
    )
    shapes = [(Call("planner", 0, prompt, prompt, 1, 0.0),)] * 20_000
    records, outcome, _ = run(SHARED, shapes, Poisson(load / service_s), profile, preamble=0)
    waits = [record.queue_s for record in records.calls]
    assert sum(waits) / len(waits) == pytest.approx(load / (2 * (1 - load)) * service_s, rel=0.1)
    assert outcome.busy["prefill"] == pytest.approx(load, rel=0.03)


def test_devices_are_watched_for_a_part_of_the_time() -> None:
    """Two prompts of half a second, two seconds apart, of which one begins before the window."""
    profile = replace(PROFILE, cost=Cost(step_s=1e-9, token_s=0.001), link=Link(0.0, 1e15))
    calls = (Call("planner", 0, 500, 500, 1, 0.0), Call("planner", 0, 1000, 1000, 1, 1.5))
    busy = {}
    for window in (None, (0.25, 2.25), (0.6, 1.6)):
        records = Records()
        arguments = (SHARED, profile, [calls], Closed(1), records)
        busy[window] = Simulation(*arguments, busy_within=window).run().busy["prefill"]
    assert busy[0.25, 2.25] == pytest.approx((0.25 + 0.25) / 2, rel=0.01)
    assert busy[0.6, 1.6] == 0
    assert busy[None] == pytest.approx(1.0 / 2.5, rel=0.01)


def two_calls(models: tuple[str, str]) -> list[Shape]:
    return [(Call(models[0], 0, 800, 800, 16, 0.0), Call(models[1], 0, 960, 960, 16, 1.0))]


def test_sharing_computes_a_context_once_for_all_models_and_without_it_each_model_computes_it() -> None:
    found = {
        layout.system: [record.cached_tokens for record in run(layout, two_calls(MODELS), Closed(1))[0].calls]
        for layout in (SHARED, Layout("per-model", MODELS), Layout("colocated", MODELS))
    }
    assert found == {"shared": [0, 800], "per-model": [0, 0], "colocated": [0, 0]}
    one_model = run(Layout("per-model", MODELS), two_calls(("actor", "actor")), Closed(1))[0].calls
    assert [record.cached_tokens for record in one_model] == [0, 800]


@pytest.mark.parametrize("system", ["per-model", "colocated"])
def test_without_sharing_models_of_one_worker_find_nothing_of_each_other(system: SystemName) -> None:
    """As many tokens are computed as with a worker for each, where caches do not overflow."""
    together, apart = (run(Layout(system, MODELS, decode_pools=pools), sessions(12), Closed(4)) for pools in (1, None))
    assert len(together[2].deployment.workers) < len(apart[2].deployment.workers)
    cached = [{(each.session, each.turn): each.cached_tokens for each in found[0].calls} for found in (together, apart)]
    own = [{key: cached_tokens for key, cached_tokens in of_run.items() if key[1] >= 2} for of_run in cached]
    assert own[0] == own[1]
    assert any(own[0].values())


def test_a_session_may_have_its_models_on_different_workers_where_they_share_nothing() -> None:
    layout = Layout("colocated", MODELS, decode_workers=2, decode_pools=1)
    calls = run(layout, two_calls(MODELS) * 8, Poisson(1.0))[0].calls
    workers = {(call.session, call.model): call.decode_worker for call in calls}
    assert any(workers[str(n), MODELS[0]] != workers[str(n), MODELS[1]] for n in range(8))


def test_a_decode_worker_pulls_what_it_does_not_hold() -> None:
    same = run(SHARED, two_calls(("actor", "actor")), Closed(1))[0].calls
    # The block with the last token of the first prompt was pulled, not kept for reuse in that same call.
    assert [record.pulled_tokens for record in same] == [800, 160]
    pull_s = PROFILE.link.latency_s + 160 * PROFILE.kv_bytes_per_token / PROFILE.link.bytes_per_s
    assert same[1].ttft_s == pytest.approx(same[1].prefill_s + pull_s + COST.steps(1, 1, 960))
    other = run(SHARED, two_calls(MODELS), Closed(1))[0].calls
    assert [record.pulled_tokens for record in other] == [800, 960]
    pooled = run(Layout("shared", MODELS, decode_pools=1), two_calls(MODELS), Closed(1))[0].calls
    assert [record.pulled_tokens for record in pooled] == [800, 160]


def test_the_last_token_of_a_prompt_is_computed_even_if_all_is_cached() -> None:
    shape = (Call("planner", 0, 800, 800, 16, 0.0), Call("planner", 0, 800, 800, 16, 1.0))
    records = run(SHARED, [shape], Closed(1))[0].calls
    assert [record.cached_tokens for record in records] == [0, 784]


def test_a_call_counts_in_a_pool_only_while_it_is_there() -> None:
    counted = []

    class Watching(Records):
        def call(self, record: CallRecord) -> None:
            routes = simulation.deployment.routes.values()
            pools = [pool for route in routes for pool in (route.prefill, route.decode)]
            counted.append(sum(pool.in_flight(worker) for pool in pools for worker in pool.workers))

    simulation = Simulation(SHARED, PROFILE, sessions(3), Closed(1), Watching())
    simulation.run()
    assert set(counted) == {0}


def test_a_new_trial_shares_the_preamble_only() -> None:
    shape = (Call("planner", 0, 800, 800, 16, 0.0), Call("planner", 1, 640, 640, 16, 0.0))
    records = run(SHARED, [shape], Closed(1), preamble=320)[0].calls
    assert [record.cached_tokens for record in records] == [0, 320]


def test_workers_on_one_device_slow_each_other_down() -> None:
    shapes = [(Call(MODELS[number % 2], 0, 800, 800, 1, 0.0),) for number in range(2)]
    own, one = (
        [record.prefill_s for record in run(layout, shapes, Closed(2), preamble=0)[0].calls]
        for layout in (Layout("per-model", MODELS), Layout("per-model", MODELS, prefill_devices=1))
    )
    assert one == pytest.approx([2 * seconds for seconds in own])


def test_answers_give_way_to_prompts_on_a_device_of_both() -> None:
    """The first call's answer is under way when the second one's prompt comes, which has 1024 of 1359 parts then."""
    shapes = [(Call(MODELS[0], 0, 800, 800, 1000, 0.0),), (Call(MODELS[1], 0, 800, 800, 1, 0.0),)]
    found = {}
    for name, devices in {"apart": (1,), "both": (0,)}.items():
        layout = Layout("shared", MODELS, prefill_devices=(0,), decode_devices=devices)
        records = run(layout, shapes, Trace(1.0, (0.0, 2.0)), preamble=0)[0].calls
        (found[name],) = (record.prefill_s for record in records if record.model == MODELS[1])
    assert found["both"] == pytest.approx(found["apart"] * (1024 + 335) / 1024)


def test_under_load_sharing_is_faster_and_reuses_more() -> None:
    shapes = sessions(300, models=("a", "b", "c", "d"))
    found = {}
    for layout in (
        Layout("shared", ("a", "b", "c", "d"), prefill_workers=4),
        Layout("per-model", ("a", "b", "c", "d")),
    ):
        found[layout.system] = summarise(run(layout, shapes, Closed(60))[0])
    assert found["shared"]["hit_ratio"] > found["per-model"]["hit_ratio"] + 0.1
    assert found["shared"]["latency_p95_s"] < found["per-model"]["latency_p95_s"]


def test_room_is_kept_for_prompt_and_output() -> None:
    _, outcome, _ = run(SHARED, two_calls(MODELS), Closed(1))
    assert outcome.peak_kv_tokens == 960 + 16


def test_a_link_serves_pulls_in_turn_and_waits_for_no_other_end() -> None:
    profile = replace(PROFILE, link=Link(0.0, 1000.0))  # a second a token
    deployment = run(Layout("shared", MODELS, 2, 2), [], Closed(1), profile)[2].deployment
    pulls = (
        ("prefill-base-0", "decode-planner-0", 1.0),
        ("prefill-base-0", "decode-planner-1", 2.0),  # behind the first one at its source
        ("prefill-base-1", "decode-planner-1", 2.0),  # behind the second one at its target, which is free until 1 s
        ("prefill-base-1", "decode-actor-0", 2.0),
    )
    for source, target, seconds in pulls:
        assert deployment.pulled(0.0, source, target, 1) == seconds
    assert deployment.pulled(5.0, *pulls[0][:2], 2) == 7.0
    assert deployment.pulled(5.0, *pulls[0][:2], 0) == 5.0


def test_a_call_that_fits_nowhere_is_named() -> None:
    shapes = [(Call("planner", 0, 900, 1000, 100, 0.0),)]
    with pytest.raises(UserError, match="a call of 1000 prompt and 100 output tokens does not fit"):
        run(SHARED, shapes, Closed(1), replace(PROFILE, kv_tokens=1024))
    run(SHARED, shapes, Closed(1), replace(PROFILE, kv_tokens=1024, decode_kv_tokens=2048))


def test_sessions_arrive_when_the_workload_says() -> None:
    waits = intervals(Poisson(2.0, 7))
    times = [0.0]
    for _ in range(9):
        times.append(times[-1] + next(waits))
    assert tuple(times) == Poisson(2.0, 7).times(10)
    records, _, _ = run(SHARED, [(Call("planner", 0, 64, 64, 1, 0.0),)] * 10, Poisson(2.0, 7))
    assert sorted(record.arrived_s for record in records.calls) == times
    recorded = Trace(2.0, (0.0, 1.0, 1.0, 9.0))
    records, _, _ = run(SHARED, [(Call("planner", 0, 64, 64, 1, 0.0),)] * 4, recorded)
    assert sorted(record.arrived_s for record in records.calls) == [0.0, 0.5, 0.5, 4.5]


def test_a_record_says_what_each_part_took() -> None:
    record: CallRecord = run(SHARED, two_calls(MODELS), Closed(1))[0].calls[0]
    assert record.prefill_s == pytest.approx(COST.step(800, 800 * 801 / 2, 0, 0))
    assert record.tpot_s == pytest.approx(COST.steps(15, 1, 801) / 15)
    assert (record.prefill_worker, record.decode_worker) == ("prefill-base-0", "decode-planner-0")


def test_cores_of_one_host_slow_each_other_down_while_both_are_busy() -> None:
    slowed = replace(PROFILE, slowdown=Slowdown(prefill_beside_decode=1.5, decode_beside_prefill=2.0))
    layout = Layout("per-model", MODELS, prefill_devices=1, decode_devices=1)
    alone, beside = (run(layout, sessions(1), Closed(1), profile)[1].ended_s for profile in (PROFILE, slowed))
    assert beside == alone  # of one call after the other, one device is idle
    free, busy = (run(layout, sessions(12), Closed(6), profile)[1].ended_s for profile in (PROFILE, slowed))
    assert 1.05 * free < busy < 2 * free
