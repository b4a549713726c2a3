"""How well the simulator predicts runs of the benchmark: `python -m experiments.calibration RESULTS --base BASE`.

RESULTS is a folder of `prefillshare bench run` with the costs of `prefillshare bench calibrate`, which were measured
without any queue, on one model: the fit has seen none of the runs. Every run is simulated with the sessions that it
played, through the router's own placement, and compared.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.section import around_section, write_section
from prefillshare.bench.costs import FILE, read
from prefillshare.bench.drive import salted
from prefillshare.bench.figures import finished, recorded
from prefillshare.bench.matrix import Run, WorkloadConfig, workload_of
from prefillshare.bench.percentiles import percentile_with_cut
from prefillshare.bench.systems import Machine, flow_of, model_names
from prefillshare.errors import UserError
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import Records, of_client, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import shapes_of
from prefillshare.workloads.session import Workload
from prefillshare.workloads.tokens import Tokenise, load_tokenise

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "simulation.md"
START = "<!-- table: python -m experiments.calibration docs/results/{folder} -->"
PREDICTED = "calibration.json"  # beside the costs, of a folder of published runs

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
OF_SESSIONS = "session_p95_s"  # some of whose sessions may have been cut off
RATIOS = {OF_SESSIONS: False, "calls_per_s": True}  # of `shared` to other systems; whether more is better
SIDES = ("measured", "simulated")
NOT_SIMULATED = "colocated-lora"
WHY_NOT = f"{NOT_SIMULATED} is not simulated: its engine computes on several cores at once, and costs are of one"


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

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.models} models, {self.load}"


def compare(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tokenise: Tokenise, costs: Path) -> Compared:
    """Simulates the run with the sessions that it played. Both end at the run's limit, whatever is under way then.

    Raises:
        UserError: a run of a system whose costs are not known.
    """
    if facts["system"] == NOT_SIMULATED:
        raise UserError(WHY_NOT)
    turn_s = facts.get("turn_s", 0.0)  # of runs from before there were turns, none
    machine = Machine.model_validate(facts["machine"] | {"turn_s": turn_s})
    config = WorkloadConfig.model_validate(facts["workload"])
    run = Run(facts["system"], facts["models"], config, facts["load"], facts["repeat"])
    workload = workload_of(run, tokenise, machine.max_model_len)
    workload = replace(
        workload,
        preamble_tokens=len(tokenise(salted(workload.preamble, run.salt))),
        # Runs that do not say which roles there were had those of the sessions that were drawn.
        declared=tuple(facts.get("roles", ())),
    )
    names = model_names(run.models)
    played = Records()
    calls = [row for row in rows if row["kind"] == "call" and row["error"] is None]
    played.calls += map(of_client, calls)
    sessions = [row for row in rows if row["kind"] == "session"]
    played.sessions += [(row["at"], row["at"] + row["latency_s"]) for row in sessions if finished(row)]
    cut = {"measured": [row["latency_s"] for row in sessions if not finished(row)]}
    start, message = _template_tokens(calls, workload, names)
    preamble = workload.preamble_tokens + start
    shapes = shapes_of(replace(workload, preamble_tokens=preamble), names, message)
    adapters = run.system == "shared-lora"
    fitted = read(costs, machine, facts["environment"]["kv_bytes_per_token"], adapters=adapters)
    profile = _of_one_worker(fitted, facts["workers"])
    simulated = Records()
    layout, arrivals = _layout(run, machine), run.arrivals(workload)
    Simulation(layout, profile, shapes, arrivals, simulated, preamble_tokens=preamble, flow=flow_of(machine)).run()
    until = facts["limit_s"]
    cut["simulated"] = [until - begun for begun, ended in simulated.sessions if begun < until < ended]
    simulated.calls = [record for record in simulated.calls if record.arrived_s + record.latency_s <= until]
    simulated.sessions = [(begun, ended) for begun, ended in simulated.sessions if ended <= until]
    figures, at_least = {}, []
    for side, records in zip(SIDES, (played, simulated), strict=True):
        figures[side], is_bound = _figures(records, cut[side])
        at_least += [side] * is_bound
    return Compared(
        run.system,
        config.title,
        run.models,
        run.load,
        run.repeat,
        **figures,
        at_least=at_least,
    )


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


def table(runs: Sequence[Compared]) -> str:
    """Each cell: measured, simulated, and the error of the latter; medians over repeats. Then the systems' ratios."""
    lines = [f"| workload, load | system | {' | '.join(FIGURES.values())} |", f"|---|---|{'---|' * len(FIGURES)}"]
    for title, system in dict.fromkeys((run.title, run.system) for run in runs):
        within = [run for run in runs if (run.title, run.system) == (title, system)]
        cells = []
        for name in FIGURES:
            cells.append(_cell(within, name))
        lines.append(f"| {title} | {system} | {' | '.join(cells)} |")
    found = ratios(runs)
    if found:
        lines += ["", "| `shared` is so many times better | against | figure | measured | simulated | error |"]
        lines.append("|---|---|---|---|---|---|")
    for cell in dict.fromkeys((ratio["run"], ratio["against"], ratio["figure"]) for ratio in found):
        within_cell = [ratio for ratio in found if (ratio["run"], ratio["against"], ratio["figure"]) == cell]
        one, two = (statistics.median(ratio[side] for ratio in within_cell) for side in SIDES)
        title, against, figure = cell
        lines.append(f"| {title} | {against} | {FIGURES[figure]} | {one:.2f} | {two:.2f} | {two / one - 1:+.0%} |")
    return "\n".join(lines)


def _cell(runs: Sequence[Compared], name: str) -> str:
    one, two = (statistics.median(getattr(run, side)[name] for run in runs) for side in SIDES)
    bounds = {side for run in runs for side in run.at_least} if name == OF_SESSIONS else set()
    if bounds:
        return ", ".join(
            f"{'>= ' * (side in bounds)}{value:.3g}" for side, value in zip(SIDES, (one, two), strict=True)
        )
    return f"{one:.3g}, {two:.3g} ({two / one - 1:+.0%})" if one else "-"


def ratios(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """How many times better `shared` is than each other system on the same sessions, where neither is only a bound."""
    ours = {(run.title, run.repeat): run for run in runs if run.system == "shared"}
    found = []
    for other in runs:
        shared = ours.get((other.title, other.repeat))
        if shared is None or other is shared:
            continue
        for figure, more_is_better in RATIOS.items():
            if figure == OF_SESSIONS and (shared.at_least or other.at_least):
                continue
            pairs = [(getattr(shared, side)[figure], getattr(other, side)[figure]) for side in SIDES]
            if all(one and two for one, two in pairs):
                values = [one / two if more_is_better else two / one for one, two in pairs]
                where = {"run": other.title, "repeat": other.repeat, "against": other.system, "figure": figure}
                found.append({**where, **dict(zip(SIDES, values, strict=True))})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="a folder of `prefillshare bench run`, with costs.json")
    parser.add_argument("--base", type=Path, default=ROOT / "artifacts" / "base", help="the base of the runs")
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"write RESULTS/{PREDICTED} and the table of docs/simulation.md that is named after RESULTS, which is a "
        "folder that `python -m experiments.bench publish` made",
    )
    options = parser.parse_args()
    start = START.format(folder=options.results.resolve().name)
    try:
        if options.publish:
            around_section(PAGE, start)  # or the page has no place for the table, which is known before minutes of work
        tokenise, costs = load_tokenise(options.base), options.results / FILE
        found = recorded(options.results)
        known = [(facts, rows) for facts, rows in found if facts["system"] != NOT_SIMULATED]
        if not known:
            raise UserError(f"{options.results}: {WHY_NOT}, and there are no runs of another system")
        if len(known) < len(found):
            print(f"left out, {len(found) - len(known)} runs: {WHY_NOT}", file=sys.stderr)
        runs = [compare(facts, rows, tokenise, costs) for facts, rows in known]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    if options.publish:
        content = {"ratios": ratios(runs), "runs": [vars(run) for run in runs]}
        (options.results / PREDICTED).write_text(json.dumps(content, indent=1) + "\n")
        write_section(PAGE, start, table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
