from dataclasses import replace
from math import ceil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefillshare.errors import UserError
from prefillshare.simulate.bounds import Alone, Demand
from prefillshare.simulate.calls import Call
from prefillshare.simulate.cost import Cost, Link, WorkerProfile
from prefillshare.simulate.goals import ByModel, Goal, GoalMissed
from prefillshare.simulate.keeping_up import KEEPS_UP
from prefillshare.simulate.layout import Layout, SystemName
from prefillshare.simulate.plan import CELL_CALLS, CELLS_COST, MOST_CALLS, Need, _cells, _Run, plan
from prefillshare.simulate.records import CallRecord
from prefillshare.workloads.arrivals import Poisson
from tests.simulate.shapes import MODELS, PREAMBLE, PROFILE, sessions

GOAL = Goal(ttft_s=1.5, tpot_s=0.05)
SHAPES = sessions(60)


def demand(rate: float) -> Demand:
    return Demand(SHAPES, MODELS, rate, PREAMBLE)


@pytest.fixture(scope="module")
def of_nine_a_second() -> Need:
    return plan(demand(9.0), PROFILE, GOAL, "shared")


def test_more_load_needs_more_workers_and_a_small_one_one_of_each(of_nine_a_second: Need) -> None:
    small, large = plan(demand(0.1), PROFILE, GOAL, "shared"), of_nine_a_second
    assert (small.prefill_workers, small.decode_workers) == ((1,), (1, 1))
    assert large.workers > small.workers
    for need in (small, large):
        assert need.ttft_p95_s <= GOAL.ttft_s
        assert need.tpot_p95_s <= GOAL.tpot_s


# Ten calls, each with 160 new tokens: a prefill worker can do one such session a second. Half of that time goes into
# attention, which the workers that the search begins with leave out.
SECOND = [tuple(Call("planner", 0, 160 * turn, 160 * turn, 2, 0.5) for turn in range(1, 11))]
PAIRS = sum(160 * (160 * turn + 80.5) for turn in range(10))
ONE_A_SECOND = replace(PROFILE, cost=Cost(step_s=1e-6, token_s=0.5 / 1600, pair_s=0.5 / PAIRS), kv_tokens=10_000_000)
PATIENT = Goal(ttft_s=60.0, tpot_s=1.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_system_has_to_keep_up_however_patient_the_goals(seed: int) -> None:
    """A goal of a minute is met by one worker with a tenth too much to do, for longer than is simulated."""
    need = plan(Demand(SECOND, ("planner",), 1.1), ONE_A_SECOND, PATIENT, "shared", seed=seed)
    assert (need.prefill_workers, need.decode_workers) == ((2,), (1,))
    assert need.kept_up >= KEEPS_UP
    assert need.prefill_busy == pytest.approx(0.55, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_system_that_keeps_up_gets_no_more_workers(seed: int) -> None:
    need = plan(Demand(SECOND, ("planner",), 0.85), ONE_A_SECOND, PATIENT, "shared", seed=seed)
    assert (need.prefill_workers, need.decode_workers) == ((1,), (1,))
    assert need.kept_up >= KEEPS_UP


@pytest.mark.parametrize("enough", [7, 8, 10, 11, 12, 13, 14])
def test_a_large_pool_is_not_charged_for_the_size_of_the_search_steps(
    enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes from 6 over 7, 8, 10 and 12 to 14, whatever lies between."""
    found: list[int] = []

    def tried(_: object, layout: Layout, goal: Goal) -> tuple[Layout, Layout]:
        (workers,) = layout.prefill_numbers()
        found.append(workers)
        more = replace(layout, prefill_workers=(workers + 1 + workers // 8,))
        return layout, layout if workers >= enough else more

    monkeypatch.setattr("prefillshare.simulate.plan._Run.tried", tried)
    monkeypatch.setattr("prefillshare.simulate.plan._Run.need", lambda _, measured: measured)
    need = plan(Demand(SECOND, ("planner",), 11.6), ONE_A_SECOND, PATIENT, "shared")
    assert need.prefill_workers == (enough,)
    assert found[0] == 6
    assert len(found) <= 7


@pytest.mark.parametrize(
    ("small", "large", "chosen", "tried_large"),
    [
        (6, 6, 512, []),
        (8, 8, 512, [6, 7]),
        (8, 7, 8192, [6, 7]),
        (11, 12, 512, [6, 7, 8, 10]),
        (12, 12, 512, [6, 7, 8, 10, 12, 11]),
        (12, 11, 8192, [6, 7, 8, 10, 12, 11]),
    ],
)
def test_colocated_workers_take_large_steps_where_fewer_then_do(
    small: int, large: int, chosen: int, tried_large: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried until it is certain that they do not need fewer."""
    found: dict[int, list[int]] = {512: [], 8192: []}

    def tried(run: _Run, layout: Layout, goal: Goal) -> tuple[Layout, Layout]:
        (workers,), budget = layout.decode_numbers(), run._profile.max_num_batched_tokens
        found[budget].append(workers)
        more = replace(layout, decode_workers=(workers + 1 + workers // 8,))
        return layout, layout if workers >= (small if budget == 512 else large) else more

    def need(run: _Run, measured: Layout) -> SimpleNamespace:
        return SimpleNamespace(workers=measured.workers(), max_num_batched_tokens=run._profile.max_num_batched_tokens)

    monkeypatch.setattr("prefillshare.simulate.plan._Run.tried", tried)
    monkeypatch.setattr("prefillshare.simulate.plan._Run.need", need)
    best = plan(Demand(SECOND, ("planner",), 11.6), ONE_A_SECOND, PATIENT, "colocated")
    assert (best.workers, best.max_num_batched_tokens) == (min(small, large), chosen)
    assert found[8192] == tried_large


def test_the_pool_that_is_behind_grows() -> None:
    """Two calls at a time, each a second for its handoff and one for its 100 tokens: a decode worker can do one a
    second, and 1.1 arrive. The search begins with one worker, since it leaves handoffs out."""
    shapes = [tuple(Call("planner", 0, 160 * turn, 160 * turn, 100, 0.5) for turn in range(1, 11))]
    cost, link = Cost(step_s=0.01, token_s=0.0001), Link(1.0, 1e9)
    profile = replace(PROFILE, cost=cost, link=link, max_num_seqs=2, kv_tokens=10_000_000)
    need = plan(Demand(shapes, ("planner",), 0.11), profile, Goal(ttft_s=600.0, tpot_s=1.0), "shared")
    assert (need.prefill_workers, need.decode_workers) == ((1,), (2,))


def test_a_system_that_still_falls_behind_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.simulate.plan.TOO_MANY", 1)
    with pytest.raises(GoalMissed, match=r"kept_up: .* even with 2 workers, .* 0\.\d+ times as fast$") as caught:
        plan(Demand(SECOND, ("planner",), 1.1), ONE_A_SECOND, PATIENT, "shared")
    (reached,) = caught.value.missed.at_best
    assert reached.kept_up == pytest.approx(1 / 1.1, abs=0.04)


def test_sessions_arrive_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a seed that has many of them: what is computed is what these bring."""
    monkeypatch.setattr("prefillshare.simulate.plan.LONG_CALLS", 4000)
    shapes, rate, seed = [(Call("planner", 0, 1000, 1000, 2, 0.0),)], 1.0, 39
    need = plan(Demand(shapes, ("planner",), rate), PROFILE, PATIENT, "shared", seed=seed)
    arrived = sum(at <= 4000 for at in Poisson(rate, seed).times(5000))
    assert arrived > 4080
    assert need.computed_tokens_per_s == pytest.approx(1000 * arrived / 4000, rel=0.001)


def test_without_sharing_more_is_computed_by_more_workers(of_nine_a_second: Need) -> None:
    shared, per_model = of_nine_a_second, plan(demand(9.0), PROFILE, GOAL, "per-model")
    assert shared.hit_ratio > per_model.hit_ratio
    assert shared.computed_tokens_per_s < per_model.computed_tokens_per_s
    assert shared.workers < per_model.workers
    assert len(per_model.prefill_workers) == len(per_model.decode_workers) == 2


def test_a_stricter_goal_for_the_time_between_tokens_needs_more_decode_workers(of_nine_a_second: Need) -> None:
    loose, strict = of_nine_a_second, plan(demand(9.0), PROFILE, Goal(GOAL.ttft_s, 0.0106), "shared")
    assert strict.tpot_p95_s <= 0.0106 < loose.tpot_p95_s
    assert sum(strict.decode_workers) > sum(loose.decode_workers)


@pytest.mark.usefixtures("short_runs")
def test_a_large_load_is_planned_as_equal_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan(demand(12.0), PROFILE, GOAL, "shared")
    for most in ("CELL_CALLS", "MOST_CALLS"):
        monkeypatch.setattr(f"prefillshare.simulate.plan.{most}", 200)
    need = plan(demand(12.0), PROFILE, GOAL, "shared")
    assert whole.cells == 1 < need.cells
    assert all(workers % need.cells == 0 for workers in (*need.prefill_workers, *need.decode_workers))
    assert sum(need.prefill_workers) >= sum(whole.prefill_workers)
    assert sum(need.decode_workers) >= sum(whole.decode_workers)
    assert need.workers <= 2.5 * whole.workers
    assert need.computed_tokens_per_s == pytest.approx(whole.computed_tokens_per_s, rel=0.15)


def test_sessions_that_think_for_long_are_not_divided_into_cells_with_idle_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are some 400 at a time, which make a call in a minute each. When they are, no more calls count than ever."""
    monkeypatch.setattr("prefillshare.simulate.plan.CELL_CALLS", 500)
    monkeypatch.setattr("prefillshare.simulate.plan.SHORT_CALLS", 1500)
    monkeypatch.setattr("prefillshare.simulate.plan.LONG_CALLS", 1500)
    seconds: list[float] = []

    def by_model(since: float, until: float) -> ByModel:
        seconds.append(until - since)
        return ByModel(since, until)

    monkeypatch.setattr("prefillshare.simulate.plan.ByModel", by_model)
    shapes = [tuple(replace(call, think_s=60.0) for call in shape) for shape in SHAPES]
    asked = Demand(shapes, MODELS, 2.0, PREAMBLE)
    need = plan(asked, PROFILE, GOAL, "shared")
    assert need.cells == 1
    assert need.workers <= 5
    calls_per_s = 2.0 * Alone(Layout("shared", MODELS), asked, PROFILE).calls
    assert seconds == pytest.approx([1500 / calls_per_s] * len(seconds))


@pytest.mark.parametrize(("most_calls", "cells"), [(120_000, 2), (1000, 3)])
def test_cells_are_as_many_as_have_work_for_their_workers(
    most_calls: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six workers prefill and one decodes. Two cells need eight in all, three nine, and twelve 24, unless runs would be
    too long otherwise."""
    monkeypatch.setattr("prefillshare.simulate.plan.CELL_CALLS", 250)
    monkeypatch.setattr("prefillshare.simulate.plan.MOST_CALLS", most_calls)
    monkeypatch.setattr("prefillshare.simulate.plan._Run.tried", lambda _, layout, goal: (layout, layout))
    monkeypatch.setattr("prefillshare.simulate.plan._Run.need", lambda run, measured: run)
    assert plan(Demand(SECOND, ("planner",), 11.6), ONE_A_SECOND, PATIENT, "shared").cells == cells


class Busy:
    """Stands for `Alone`: so many workers of each pool are busy with a session a second, of one call and one second."""

    session_s = calls = 1.0

    def __init__(self, *busy: float) -> None:
        self._busy = busy
        self.tries = 0

    def fewest(self, goal: Goal, rate: float) -> Layout:
        self.tries += 1
        numbers = tuple(max(1, ceil(rate * workers)) for workers in self._busy)
        return Layout("colocated", tuple(map(str, self._busy)), decode_workers=numbers)


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e-3), min_size=1, max_size=5, unique=True), st.floats(1, 1e6), st.sampled_from([2, 5, 50])
)
def test_no_affordable_number_of_cells_is_passed_over(busy: list[float], rate: float, longest: int) -> None:
    asked, alone = Demand(SHAPES, MODELS, rate), Busy(*busy)
    most, least = (max(1, ceil(3 * rate / calls)) for calls in (2000, 2000 * longest))
    affordable = CELLS_COST * alone.fewest(GOAL, rate).workers()
    tried = (
        cells for cells in range(most, least, -1) if cells * alone.fewest(GOAL, rate / cells).workers() <= affordable
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefillshare.simulate.plan.CELL_CALLS", 2000)
        patch.setattr("prefillshare.simulate.plan.MOST_CALLS", 2000 * longest)
        assert _cells(asked, alone, GOAL) == next(tried, least)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.1e9, float("inf"), float("nan")])
def test_a_rate_that_is_no_load_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"rate: more than 0 and at most 1,000,000,000 sessions a second, found"):
        demand(rate)


@pytest.mark.parametrize("rate", [1e6, 1e9])
def test_cells_of_a_very_large_load_are_found_in_a_few_tries(rate: float) -> None:
    alone = Busy(1e-5, 2e-5, 3e-5)  # idle in small cells
    assert 3 * rate / MOST_CALLS <= _cells(Demand(SHAPES, MODELS, rate), alone, GOAL) < 3 * rate / CELL_CALLS  # type: ignore[arg-type]
    assert alone.tries < 20


@pytest.mark.usefixtures("short_runs")
def test_the_pool_that_has_more_to_do_gets_more_workers() -> None:
    shapes = [(*shape, *(replace(call, model="planner") for call in shape)) for shape in SHAPES]
    need = plan(Demand(shapes, MODELS, 8.0, PREAMBLE), PROFILE, GOAL, "per-model")
    assert need.prefill_workers[0] > need.prefill_workers[1]


@pytest.mark.usefixtures("short_runs")
def test_modules_in_one_pool_need_fewer_workers_for_a_small_load() -> None:
    need = plan(demand(0.1), PROFILE, GOAL, "shared", decode_pools=1)
    assert need.decode_workers == (1,)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("system", ["per-model", "colocated"])
def test_adapters_in_one_pool_do_without_a_worker_a_model_but_not_without_their_prefill(system: SystemName) -> None:
    apart, together = (plan(demand(0.1), PROFILE, GOAL, system, decode_pools=pools) for pools in (None, 1))
    assert (apart.decode_workers, together.decode_workers) == ((1, 1), (1,))
    assert together.workers == apart.workers // 2
    assert together.computed_tokens_per_s == pytest.approx(apart.computed_tokens_per_s, rel=0.02)


def test_the_fewest_workers_are_those_that_the_work_keeps_busy() -> None:
    """One call a session: 1,000 tokens of 1 ms, then 10 tokens in batches of 4, 0.1 s each."""
    shapes = [(Call("planner", 0, 1000, 1000, 10, 0.0),)]
    profile = WorkerProfile(Cost(step_s=0.1, token_s=0.001), PROFILE.link, 1, 64_000, max_num_seqs=4)
    asked = Demand(shapes, ("planner",), 3.5)
    found = Alone(Layout("shared", ("planner",)), asked, profile).fewest(Goal(10, 1), 3.5)
    assert (found.prefill_numbers(), found.decode_numbers()) == ((4,), (1,))
    assert Alone(Layout("shared", ("planner",)), asked, replace(profile, max_num_seqs=1)).fewest(
        Goal(10, 1), 3.5
    ).decode_numbers() == (4,)
    colocated = Alone(Layout("colocated", ("planner",)), asked, profile).fewest(Goal(10, 1), 3.5)
    assert colocated.decode_numbers() == (5,)


def test_a_goal_that_a_system_cannot_meet_is_named_with_the_system_and_what_it_reaches() -> None:
    with pytest.raises(GoalMissed, match=r"ttft: 0\.01 s cannot be met by shared with .* reach 0\.138 s$"):
        plan(demand(1.0), PROFILE, Goal(0.01, 1.0), "shared")
    with pytest.raises(GoalMissed, match=r"tpot: 0\.001 s cannot be met by per-model with .* reach 0\.0102 s$"):
        plan(demand(1.0), PROFILE, Goal(10.0, 0.001), "per-model")


@pytest.mark.usefixtures("short_runs")
def test_a_goal_that_one_system_cannot_meet_may_be_met_by_another() -> None:
    goal = Goal(0.18, 0.05)
    assert plan(demand(1.0), PROFILE, goal, "shared").ttft_p95_s <= goal.ttft_s
    for system in ("per-model", "colocated"):
        with pytest.raises(GoalMissed, match=f"ttft: 0.18 s cannot be met by {system}"):
            plan(demand(1.0), PROFILE, goal, system)


LONG_PROMPT = Demand([(Call("planner", 0, 2000, 2000, 10, 0.0),)], ("planner",), 0.1)  # of four small steps, or one


@pytest.mark.usefixtures("short_runs")
def test_colocated_workers_take_large_steps_where_small_ones_miss_a_goal() -> None:
    """Alone the prompt takes 1.028 s in steps of 512 tokens, 1.022 s in one."""
    need = plan(LONG_PROMPT, PROFILE, Goal(1.025, 0.5), "colocated")
    assert need.max_num_batched_tokens == 8192
    assert need.ttft_p95_s <= 1.025


def test_what_colocated_workers_reach_is_said_for_each_size_of_steps() -> None:
    with pytest.raises(GoalMissed) as caught:
        plan(LONG_PROMPT, PROFILE, Goal(1.02, 0.01), "colocated")
    at_best = caught.value.missed.as_dict()["at_best"]
    assert [(each["max_num_batched_tokens"], each["workers"]) for each in at_best] == [(512, None), (8192, None)]
    assert [each["ttft_p95_s"] for each in at_best] == pytest.approx([1.028, 1.022], abs=1e-4)
    assert [each["goals_missed"] for each in at_best] == [["ttft", "tpot"]] * 2
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["ttft", "tpot"] * 2
    assert ["steps of 512 tokens" in line for line in lines] == [True, True, False, False]
    assert ["steps of 8,192 tokens" in line for line in lines] == [False, False, True, True]


def test_a_system_that_needs_far_more_workers_than_it_keeps_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.simulate.plan.TOO_MANY", 1)
    with pytest.raises(GoalMissed, match=r"ttft: 0\.4 s is missed by per-model even with \d+ workers") as caught:
        plan(demand(9.0), PROFILE, Goal(0.4, 0.05), "per-model")
    (reached,) = caught.value.missed.at_best
    assert reached.ttft_p95_s > 0.4
    assert f"even with {reached.workers} workers, " in str(caught.value)
    assert str(caught.value).endswith(f"95 % of a model's calls reach {reached.ttft_p95_s:.3g} s")


@pytest.mark.parametrize("field", ["ttft_s", "tpot_s"])
def test_a_goal_is_above_zero(field: str) -> None:
    with pytest.raises(UserError, match=field.removesuffix("_s")):
        Goal(**{"ttft_s": 1.0, "tpot_s": 1.0} | {field: 0.0})


def test_goals_are_about_each_model_and_the_calls_that_count() -> None:
    seen = ByModel(since=5.0, until=15.0)
    for arrived in range(20):
        for model, seconds in (("a", 0.1), ("b", 0.3)):
            slow = 10.0 if arrived in (4, 16) else seconds
            seen.call(CallRecord("s", 0, model, arrived, slow / 3, slow / 6, slow, 0.01, 1.0, 100, 40, 2, 60))
    assert (seen.ttft("a"), seen.ttft("b"), seen.leg_1("b")) == (0.1, 0.3, pytest.approx(0.15))
    assert (seen.worst_ttft(), seen.worst_tpot(), seen.totals.prompt_tokens) == (0.3, 0.01, 2200)
