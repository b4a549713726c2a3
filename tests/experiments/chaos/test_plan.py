from itertools import pairwise

from experiments.chaos.plan import make_plan


def test_a_plan_follows_from_its_seed_and_begins_like_a_shorter_one() -> None:
    plan = make_plan(1, 1200.0, 5)
    assert plan == make_plan(1, 1200.0, 5)
    assert plan != make_plan(2, 1200.0, 5)
    short = make_plan(1, 60.0, 5)
    assert plan[: len(short)] == short


def test_every_worker_is_killed_and_stopped_in_all_its_parts() -> None:
    plan = make_plan(1, 3600.0, 5)
    assert {(strike.worker, strike.kind) for strike in plan} == {(n, k) for n in range(5) for k in ("kill", "stop")}
    assert {strike.part for strike in plan} == {"all", "server", "engine"}
    assert all((strike.seconds > 0) == (strike.kind == "stop") for strike in plan)
    assert all(before.at_s < after.at_s for before, after in pairwise(plan))
