"""Runs that were made by the simulator, in place of real workers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.calibration.changes import AS_IT_WAS, Change
from experiments.calibration.runs import Compared, Played, _layout, _of_one_worker, compare, played
from prefillshare.bench.costs import FILE, read
from prefillshare.bench.matrix import Run, WorkloadConfig, workload_of
from prefillshare.bench.systems import Machine, model_names
from prefillshare.simulate.calibrate import AS_MEASURED, Pace
from prefillshare.simulate.records import Records
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import shapes_of
from tests.workloads.tokenisers import words

COSTS = {
    "cost": {"step_s": 0.05, "token_s": 0.002, "sequence_s": 0.005},
    "leg_s": 0.02,
    "link_bytes_per_s": 1e9,
    "adapter_decode_cost": {"step_s": 0.1, "token_s": 0.002, "sequence_s": 0.01},
    "environment": {"processor": "a processor", "dtype": "bfloat16"},
}
MACHINE = Machine()
CONFIG = WorkloadConfig(source="tool_heavy", sessions=4, max_calls=5)
TEMPLATE = 6  # tokens around a message
START = 40  # before all of them
Recorded = tuple[dict[str, Any], list[dict[str, Any]]]


def made_up(tmp_path: Path, system: Any, *arguments: Any, **options: Any) -> Compared:
    """A run of `system` by the simulator, compared with its prediction."""
    return compare(played_by_simulator(tmp_path, system, *arguments, **options))


def played_by_simulator(
    tmp_path: Path,
    system: Any,
    slower: float = 1.0,
    predicted_by: Mapping[str, Any] = COSTS,
    change: Change = AS_IT_WAS,
    **options: Any,
) -> Played:
    """A run of `system` by the simulator, as it is predicted."""
    facts, rows = by_simulator(tmp_path, system, slower, **options)
    costs = tmp_path / FILE
    costs.write_text(json.dumps(predicted_by))
    return played(facts, rows, words, costs, change)


def write_simulated(results: Path, system: Any, **options: Any) -> None:
    """The files of such a run, and its costs."""
    facts, rows = by_simulator(results, system, **options)
    (results / "runs").mkdir(exist_ok=True)
    file = results / "runs" / f"{facts['run']}.json"
    file.write_text(json.dumps(facts))
    file.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_simulator(
    tmp_path: Path,
    system: Any,
    slower: float = 1.0,
    limit_s: float = 1e6,
    load: str = "closed:2",
    pace: Pace = AS_MEASURED,
    **further_facts: Any,
) -> Recorded:
    """What a run of `system` by the simulator at this pace leaves, all of it `slower`, and cut off after `limit_s`."""
    costs = tmp_path / FILE
    costs.write_text(json.dumps(COSTS))
    run = Run(system, 2, CONFIG, load, 0)
    workload = workload_of(run, words, MACHINE.max_model_len)
    preamble = len(words(f"{run.salt} {workload.preamble}")) + START
    shapes = shapes_of(replace(workload, preamble_tokens=preamble), model_names(2), TEMPLATE)
    specs = {
        "colocated": [("both", 49_152)],
        "per-model": [("prefill", 24_576), ("decode", 24_576)],
        "shared": [("prefill", 49_152), ("decode", 24_576)],
        "shared-lora": [("prefill", 49_152), ("decode", 49_152)],
    }
    workers = [{"role": role, "kv_tokens": tokens} for role, tokens in specs[system]]
    fitted = read(costs, MACHINE, 1000, adapters=system == "shared-lora")
    profile = pace.of(_of_one_worker(fitted, workers))
    records = Records()
    arguments = (_layout(run, MACHINE), profile, shapes, run.arrivals(workload), records)
    Simulation(*arguments, preamble_tokens=preamble).run()
    names = [session.name for session in workload.sessions]
    rows: list[dict[str, Any]] = [
        {
            "kind": "call",
            "session": names[int(record.session)],
            "turn": record.turn,
            "model": record.model,
            "at": slower * record.arrived_s,
            "latency_s": slower * record.latency_s,
            "ttft_s": slower * record.ttft_s,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens,
            "error": None,
        }
        for record in records.calls
        if slower * (record.arrived_s + record.latency_s) <= limit_s
    ]
    rows += [
        {
            "kind": "session",
            "at": slower * begin,
            "latency_s": min(slower * end, limit_s) - slower * begin,
            "calls": 5 if slower * end <= limit_s else 2,
            "planned_calls": 5,
            "error": None,
        }
        for begin, end in records.sessions
        if slower * begin < limit_s
    ]
    facts = {
        "run": run.name,
        "system": system,
        "models": 2,
        "workload": CONFIG.model_dump(),
        "load": load,
        "repeat": 0,
        "limit_s": limit_s,
        "machine": MACHINE.model_dump(),
        "workers": workers,
        "environment": {"kv_bytes_per_token": 1000},
        **further_facts,
    }
    return facts, rows
