import json
from pathlib import Path

import pytest

from prefillshare.bench.figures import Figures, Slo, read_runs
from prefillshare.errors import UserError
from tests.bench.written import CALL, DECODE, PREFILL, SESSION, write_run

ROWS = [
    CALL,
    CALL | {"ttft_s": 6.0, "latency_s": 7.0},  # too late for goodput
    CALL | {"latency_s": 5.0},  # too slow for it: 0.4 s a token
    CALL | {"error": "HTTP 429", "ttft_s": None, "latency_s": 0.1},
    SESSION,
    SESSION | {"calls": 2, "latency_s": 99.0},  # cut off
]


def figures(folder: Path, **fields) -> Figures:
    write_run(folder, ROWS, **fields)
    (run,) = read_runs(folder, Slo(ttft_s=5.0, tpot_s=0.25))
    return run


def test_latencies_are_of_what_was_answered_to_its_end(tmp_path: Path) -> None:
    values = figures(tmp_path).values
    assert (values["call s p50"], values["call s p95"]) == (5.0, 7.0)
    assert values["ttft s p95"] == 6.0
    assert values["tpot s"] == pytest.approx((0.2 + 0.1 + 0.4) / 3)


def test_a_tokens_time_is_the_mean_of_its_call(tmp_path: Path) -> None:
    values = figures(tmp_path).values
    assert [values[f"tpot s p{share}"] for share in (50, 95, 99)] == pytest.approx([0.2, 0.4, 0.4])
    # Of one token no time lies between two.
    write_run(tmp_path, [CALL | {"output_tokens": 1}, SESSION])
    (run,) = read_runs(tmp_path, Slo())
    assert run.values["tpot s p95"] is None
    assert "tpot s p95" not in run.at_least


def test_calls_that_were_under_way_may_have_had_the_slowest_tokens(tmp_path: Path) -> None:
    calls = [CALL | {"latency_s": 1.0 + n} for n in range(1, 20)]  # 0.1 to 1.9 s a token
    cut = {"kind": "cut", "session": "s", "ttft_s": 1.0, "queue_s": 0.1, "prefill_s": 0.5, "seen_s": 9.0}
    write_run(tmp_path, [*calls, *[cut] * 2], cut_calls=2)
    (run,) = read_runs(tmp_path, Slo())
    assert run.values["tpot s p50"] == pytest.approx(1.0)
    assert {name for name in run.at_least if name.startswith("tpot")} == {"tpot s p95", "tpot s p99"}


def test_sessions_that_were_cut_off_count_as_long_as_they_were_seen(tmp_path: Path) -> None:
    run = figures(tmp_path)
    assert (run.values["session s p50"], run.values["session s p99"]) == (20.0, 99.0)
    assert {name for name in run.at_least if name.startswith("session")} == {"session s p95", "session s p99"}
    # It was cut off in a call, which may be the slowest of the four.
    assert {name for name in run.at_least if name.startswith("call")} == {"call s p95", "call s p99"}


def test_parts_of_the_first_tokens_time_are_shown_where_they_are_told(tmp_path: Path) -> None:
    values = figures(tmp_path).values
    assert (values["queue s p50"], values["leg 1 s p95"]) == (0.2, 0.4)
    write_run(tmp_path, [{key: value for key, value in CALL.items() if key not in ("queue_s", "prefill_s")}])
    (plain,) = read_runs(tmp_path, Slo())
    assert plain.values["queue s p50"] is None


def test_rates_count_sessions_by_the_calls_that_they_made(tmp_path: Path) -> None:
    values = figures(tmp_path).values
    assert values["calls a minute"] == 3
    assert values["sessions a minute"] == 1.5
    assert values["goodput, calls a minute"] == 1
    assert (values["sessions"], values["unfinished sessions"], values["failed calls"]) == (2, 1, 1)


def test_hits_are_measured_where_prompts_are_computed(tmp_path: Path) -> None:
    values = figures(tmp_path).values
    assert values["prefix hit ratio"] == 0.9
    assert values["KV moved a session, MB"] == pytest.approx(4 / 1.5)
    assert values["peak KV, MB"] == 0.5


def test_prompts_of_calls_that_were_never_answered_are_no_work_of_sessions(tmp_path: Path) -> None:
    """Three were, of 100 tokens each, of which 64 were cached; the worker counted more, of one that was not."""
    values = figures(tmp_path, workers=[PREFILL | {"queried_tokens": 400.0, "hit_tokens": 228.0}, DECODE]).values
    assert values["prefill tokens a session"] == pytest.approx(3 * (100 - 64) / 1.5)


def test_what_no_earlier_prompt_of_its_session_held_can_be_no_hit(tmp_path: Path) -> None:
    first = CALL | {"prompt_tokens": 60, "new_tokens": 60}
    failed = CALL | {"new_tokens": 100, "error": "HTTP 429"}
    write_run(tmp_path, [first, CALL | {"new_tokens": 20}, failed, SESSION])
    (run,) = read_runs(tmp_path, Slo())
    assert run.values["hit ratio at best"] == 0.5
    write_run(tmp_path, [first, {key: value for key, value in CALL.items() if key != "new_tokens"}])
    (old,) = read_runs(tmp_path, Slo())
    assert old.values["hit ratio at best"] is None


def test_the_busiest_core_is_the_limit_if_it_was_busy(tmp_path: Path) -> None:
    busy = figures(tmp_path)
    assert busy.limit == "core 0 (prefill)"
    assert busy.values["cpu of core 0 (prefill)"] == 0.95
    assert busy.values["cpu of core 1 (decode)"] == 0.2
    assert busy.values["cpu of router"] == 0.05
    assert busy.values["cpu of API servers"] == 0.04
    assert figures(tmp_path, workers=[PREFILL | {"cpu_s": 30.0}, DECODE]).limit == "none"


def test_workers_on_one_core_are_taken_together(tmp_path: Path) -> None:
    both = PREFILL | {"role": "both"}
    values = figures(tmp_path, system="colocated", workers=[both | {"cpu_s": 20.0}, both | {"cpu_s": 10.0}]).values
    assert values["cpu of core 0 (vLLM)"] == 0.5
    assert values["prefix hit ratio"] == 0.9


def test_an_engine_on_all_cores_is_busy_when_all_of_them_are(tmp_path: Path) -> None:
    spread = PREFILL | {"role": "both", "core": None}
    busy = figures(tmp_path, system="colocated-lora", workers=[spread | {"cpu_s": 114.0}])
    assert busy.values["cpu of cores 0, 1 (vLLM)"] == 0.95
    assert busy.limit == "cores 0, 1 (vLLM)"
    assert figures(tmp_path, system="colocated-lora", workers=[spread | {"cpu_s": 60.0}]).limit == "none"


def test_a_run_without_an_answer_has_no_latencies(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    (run,) = read_runs(tmp_path, Slo())
    assert run.values["call s p95"] is None
    assert run.values["prefill tokens a session"] is None
    assert run.values["sessions a minute"] == 0


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run has ended here; run `prefillshare bench run"):
        read_runs(tmp_path, Slo())


def test_how_near_a_run_came_to_what_is_possible_is_told_where_costs_are_known(tmp_path: Path) -> None:
    assert figures(tmp_path).values["least s possible"] is None
    costs = {"cost": {"step_s": 0.1, "token_s": 0.2}, "leg_s": 0.0, "link_bytes_per_s": 1e9}
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    run = figures(tmp_path)
    # Three answered calls of a session that thinks for 8 s, each of 80 new tokens and 11 steps; the run took a minute.
    least = 3 * (80 * 0.2 + 11 * 0.2) + 8
    assert run.values["least s possible"] == pytest.approx(least)
    assert run.values["of the possible speed"] == pytest.approx(least / 60)
    assert run.bound_by == "the longest session"


def test_costs_of_another_kind_of_machine_say_nothing_of_what_is_possible(tmp_path: Path) -> None:
    costs = {"cost": {"step_s": 0.1, "token_s": 0.2}, "leg_s": 0.0, "link_bytes_per_s": 1e9}

    def run(**environment: object) -> Figures:
        (tmp_path / "costs.json").write_text(json.dumps(costs | {"environment": environment}))
        return figures(tmp_path)

    same = run(processor="a processor", cores=2, dtype="bfloat16", memory_gib=1.0, load_before=9.0)
    assert (same.other_costs, same.bound_by) == (None, "the longest session")
    # The run does not say whether there were autogroups; the day, and how busy it was, are no kind of machine.
    assert run(processor="a processor", autogroups=True, when="then").other_costs is None
    other = run(processor="a processor", cores=8, dtype="float32")
    assert other.other_costs == "cores 8 instead of 2, dtype float32 instead of bfloat16"
    assert (other.values["least s possible"], other.values["of the possible speed"], other.bound_by) == (None,) * 3


def test_an_open_loop_is_told_by_what_it_kept_up_with_and_not_by_how_long_it_took(tmp_path: Path) -> None:
    rows = [
        row | {"session": f"s-{n}", "at": 10.0 * n, "calls": 1, "planned_calls": 1}
        for n in range(20)
        for row in (CALL, SESSION)
    ]
    (tmp_path / "costs.json").write_text('{"cost": {"step_s": 0.1, "token_s": 0.2}, "leg_s": 0, "link_bytes_per_s": 1}')
    write_run(tmp_path, rows, load="poisson:0.1")
    (run,) = read_runs(tmp_path, Slo())
    assert run.values["kept up"] == pytest.approx(1, abs=0.02)
    assert run.values["arrivals a minute"] == pytest.approx(6)
    assert run.values["of the possible speed"] is None
    write_run(tmp_path, rows)
    write_run(tmp_path, rows, load="trace")
    assert [run.values["kept up"] is None for run in read_runs(tmp_path, Slo())] == [True, False, False]


def test_calls_that_were_under_way_at_the_end_count_as_long_as_they_were_seen(tmp_path: Path) -> None:
    calls = [CALL | {"latency_s": float(n), "ttft_s": 0.1 * n} for n in range(1, 20)]
    cut = {"kind": "cut", "session": "s", "ttft_s": None, "queue_s": None, "prefill_s": None, "seen_s": 12.5}
    unfinished = [SESSION | {"calls": 1, "session": f"s-{n}"} for n in range(6)]

    def percentiles(*under_way: dict[str, object]) -> tuple[dict[str, float | None], frozenset[str]]:
        write_run(tmp_path, [*calls, *under_way, *unfinished], cut_calls=len(under_way))
        (run,) = read_runs(tmp_path, Slo())
        return run.values, run.at_least

    # All six sessions were cut off between their calls.
    values, at_least = percentiles()
    assert (values["call s p50"], values["call s p95"]) == (10.0, 19.0)
    assert not any(name.startswith(("call", "ttft", "queue")) for name in at_least)
    values, at_least = percentiles(*[cut] * 6)
    # Of 13 under way at 12.5 s six leave: then 7 of the 25 calls stand for 13.
    assert values["call s p50"] == 13.0
    assert values["ttft s p50"] == pytest.approx(1.3)  # the six are later
    assert {"call s p95", "ttft s p95", "queue s p95"} <= at_least
    # With a first token after a second: only the answer is missing.
    values, at_least = percentiles(*[cut | {"ttft_s": 1.0, "queue_s": 0.1, "prefill_s": 0.5}] * 6)
    assert values["ttft s p95"] == pytest.approx(1.8)
    assert {name for name in at_least if name.startswith(("ttft", "queue", "leg"))} == set()
    assert "call s p95" in at_least
