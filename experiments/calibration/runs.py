"""Runs of the benchmark, and each as the simulator predicts it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.calibration.changes import AS_IT_WAS, Change
from prefillshare.bench.costs import read
from prefillshare.bench.drive import salted
from prefillshare.bench.figures import finished
from prefillshare.bench.matrix import Run, WorkloadConfig, workload_of
from prefillshare.bench.percentiles import percentile_with_cut
from prefillshare.bench.systems import Machine, flow_of, model_names
from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import AS_MEASURED, Measured, Pace
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import Records, of_client, summarise
from prefillshare.simulate.workload import shapes_of
from prefillshare.workloads.conversation import Mode
from prefillshare.workloads.session import Workload
from prefillshare.workloads.tokens import Tokenise

# What is compared, and its name in the table.
FIGURES = {
    "session_p95_s": "session p95 s",
    "latency_p50_s": "call p50 s",
    "latency_p95_s": "call p95 s",
    "ttft_p50_s": "first token p50 s",
    "ttft_p95_s": "first token p95 s",
    "calls_per_s": "calls/s",
    "hit_ratio": "hit ratio",
}
SIDES = ("measured", "simulated")
OF_SESSIONS = "session_p95_s"  # some of whose sessions may have been cut off
_MAY_HAVE_BEEN = (0.95, 0.975, 1.025, 1.05)  # so many times as slow
NOT_SIMULATED = "colocated-lora"
WHY_NOT = f"{NOT_SIMULATED} is not simulated: its engine computes on several cores at once, and costs are of one"


@dataclass(frozen=True)
class Played:
    """A run of the benchmark, and all that it takes to simulate it."""

    run: Run
    measured: Measured
    cut_s: Sequence[float]  # how long sessions had lasted that were cut off

    @property
    def kind(self) -> str:
        """By which runs are chosen to fit to, such as `react/closed:8`."""
        return f"{self.run.workload.source}/{self.run.load}"


@dataclass(frozen=True)
class Compared:
    """Of one run, every figure as it was measured and as it was simulated. `at_least` names the sides whose session
    p95 is only known to be as large, or larger: the sessions that would tell were cut off."""

    system: str
    workload: str
    models: int
    load: str
    repeat: int
    measured: Mapping[str, float]
    simulated: Mapping[str, float]
    at_least: Sequence[str] = ()
    # Between what each figure is simulated if the machine was up to 5 % faster or slower, where that was asked for.
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.models} models, {self.load}"


def played(
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    tokenise: Tokenise,
    costs: Path,
    change: Change = AS_IT_WAS,
) -> Played:
    """The run, with the sessions that it played.

    Args:
        change: of what is simulated; what was measured stays.

    Raises:
        UserError: a run of a system whose costs are not known, or a change that leaves a worker no room for a prompt.
    """
    if facts["system"] == NOT_SIMULATED:
        raise UserError(WHY_NOT)
    turn_s = facts.get("turn_s", 0.0)  # of runs from before there were turns, none
    machine = Machine.model_validate(facts["machine"] | {"turn_s": turn_s})
    config = WorkloadConfig.model_validate(facts["workload"])
    run = Run(facts["system"], facts["models"], config, facts["load"], facts["repeat"])
    # Live sessions had no room for longer answers than were recorded before their digest was written.
    mode: Mode = facts["mode"] if "sessions_digest" in facts else "replay"
    workload = workload_of(run, tokenise, machine.max_model_len, mode)
    workload = replace(
        workload,
        preamble_tokens=len(tokenise(salted(workload.preamble, run.salt))),
        # Runs that do not say which roles there were had those of the sessions that were drawn.
        declared=tuple(facts.get("roles", ())),
    )
    records = Records()
    calls = [row for row in rows if row["kind"] == "call" and row["error"] is None]
    records.calls += map(of_client, calls)
    sessions = [row for row in rows if row["kind"] == "session"]
    records.sessions += [(row["at"], row["at"] + row["latency_s"]) for row in sessions if finished(row)]
    start, message = _template_tokens(calls, workload, model_names(run.models))
    preamble = workload.preamble_tokens + start
    fitted = read(costs, machine, facts["environment"]["kv_bytes_per_token"], adapters=run.system == "shared-lora")
    was = _layout(run, machine)
    layout = _layout(replace(run, models=change.models or run.models), machine)
    measured = Measured(
        layout,
        change.of_worker(_of_one_worker(fitted, facts["workers"]), was, layout, machine.max_model_len),
        shapes_of(replace(workload, preamble_tokens=preamble), layout.models, message),
        run.arrivals(workload),
        records,
        preamble,
        change.of_router(flow_of(machine)),
        facts["limit_s"],
    )
    return Played(run, measured, [row["latency_s"] for row in sessions if not finished(row)])


def compare(played: Played, pace: Pace = AS_MEASURED, *, ranges: bool = False) -> Compared:
    """Simulates the run, for `ranges` several times. Both end at the run's limit, whatever is under way then."""
    measured, is_bound = _figures(played.measured.records, played.cut_s)
    simulated, simulated_is_bound = _simulated(played, pace)
    at_least = [side for side, bound in zip(SIDES, (is_bound, simulated_is_bound), strict=True) if bound]
    run = played.run
    where = (run.system, run.workload.title, run.models, run.load, run.repeat)
    found = Compared(*where, measured, simulated, at_least)
    if not ranges:
        return found
    others = [_simulated(played, replace(pace, factor=pace.factor * each))[0] for each in _MAY_HAVE_BEEN]
    values = {name: [figures[name] for figures in (simulated, *others)] for name in FIGURES}
    return replace(found, ranges={name: (min(each), max(each)) for name, each in values.items()})


def _simulated(played: Played, pace: Pace) -> tuple[dict[str, float], bool]:
    simulated, until = played.measured.simulated(pace), played.measured.limit_s
    cut_s = [until - begun for begun, ended in simulated.sessions if begun < until < ended]
    return _figures(simulated.until(until), cut_s)


def _figures(records: Records, cut: Sequence[float]) -> tuple[dict[str, float], bool]:
    """`cut`: how long sessions had lasted that were cut off. Also whether the session p95 is only a bound."""
    found = summarise(records)
    ended = [ended - begun for begun, ended in records.sessions]
    p95, is_bound = percentile_with_cut(ended, cut, 0.95)
    return {name: found[name] for name in FIGURES} | {OF_SESSIONS: p95 or 0.0}, is_bound


def _template_tokens(calls: Sequence[Mapping[str, Any]], workload: Workload, names: Sequence[str]) -> tuple[int, int]:
    """What the chat template puts before all messages, and around each: by how much real prompts exceed their texts."""
    bare, marked = (
        {
            session.name: shape
            for session, shape in zip(workload.sessions, shapes_of(workload, names, each), strict=True)
        }
        for each in (0, 1)
    )
    texts = [bare[call["session"]][call["turn"]].prompt for call in calls]
    messages = [marked[call["session"]][call["turn"]].prompt - text for call, text in zip(calls, texts, strict=True)]
    excess = [call["prompt_tokens"] - text for call, text in zip(calls, texts, strict=True)]
    each, start = np.polyfit(messages, excess, 1)
    return round(start), round(each)


def _layout(run: Run, machine: Machine) -> Layout:
    names = model_names(run.models)
    prefill, decode = machine.prefill_cores, machine.decode_cores
    if run.system == "colocated":
        return Layout("colocated", names, decode_devices=machine.cores)
    return Layout(
        "per-model" if run.system == "per-model" else "shared",
        names,
        decode_pools=1 if run.system == "shared-lora" else None,
        prefill_devices=prefill,
        decode_devices=decode,
    )


def _of_one_worker(profile: WorkerProfile, workers: Sequence[Mapping[str, Any]]) -> WorkerProfile:
    """With the KV memory that a worker of each role had."""
    kv_tokens = {worker["role"]: worker["kv_tokens"] for worker in workers}
    both = kv_tokens.get("both", 0)  # of an ordinary vLLM
    return replace(profile, kv_tokens=kv_tokens.get("prefill", both), decode_kv_tokens=kv_tokens.get("decode", both))
