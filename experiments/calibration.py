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

from experiments.section import write_section
from prefillshare.bench.costs import FILE, read
from prefillshare.bench.matrix import Run, WorkloadConfig, workload_of
from prefillshare.bench.systems import Machine, model_names
from prefillshare.errors import UserError
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord, Records, percentile
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import shapes_of
from prefillshare.workloads.session import Workload
from prefillshare.workloads.tokens import Tokenise, load_tokenise

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "simulation.md"
RESULTS = ROOT / "docs" / "results" / "calibration.json"
START = "<!-- table: python -m experiments.calibration -->"

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
RATIOS = {"session_p95_s": False, "calls_per_s": True}  # of `shared` to other systems; whether more is better
SIDES = ("measured", "simulated")


@dataclass(frozen=True)
class Compared:
    """Of one run, every figure as it was measured and as it was simulated."""

    system: str
    workload: str
    models: int
    load: str
    repeat: int
    measured: Mapping[str, float]
    simulated: Mapping[str, float]

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.models} models, {self.load}"


def compare(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tokenise: Tokenise, costs: Path) -> Compared:
    """Simulates the run with the sessions that it played; what either did after the run was over is left out."""
    machine = Machine.model_validate(facts["machine"])
    config = WorkloadConfig.model_validate(facts["workload"])
    run = Run(facts["system"], facts["models"], config, facts["load"], facts["repeat"])
    workload = workload_of(run, tokenise, machine.max_model_len)
    preamble = len(tokenise(" ".join(text for text in (run.salt, workload.preamble) if text)))
    workload = replace(workload, preamble_tokens=preamble)
    names = model_names(run.models)
    calls = [row for row in rows if row["kind"] == "call" and row["error"] is None]
    shapes = shapes_of(workload, names, _message_tokens(calls, workload, shapes_of(workload, names)))
    profile = _of_one_worker(read(costs, machine, facts["environment"]["kv_bytes_per_token"]), run, machine)
    records = Records()
    Simulation(_layout(run, machine), profile, shapes, run.arrivals(), records, preamble_tokens=preamble).run()
    until = facts["seconds"]
    source = Path(config.source).stem + (f", {config.max_calls} calls" if config.max_calls else "")
    return Compared(
        run.system,
        source,
        run.models,
        run.load,
        run.repeat,
        measured=_figures(
            calls,
            [row["latency_s"] for row in rows if row["kind"] == "session" and row["calls"] == row["planned_calls"]],
        ),
        simulated=_figures(
            [_row(record) for record in records.calls if record.arrived_s + record.latency_s <= until],
            [end - begin for begin, end in records.sessions if end <= until],
        ),
    )


def _message_tokens(calls: Sequence[Mapping[str, Any]], workload: Workload, shapes: Sequence[Shape]) -> int:
    """What the chat template puts around a message: by how much real first prompts are longer than their texts."""
    by_name = {session.name: shape for session, shape in zip(workload.sessions, shapes, strict=True)}
    more = [call["prompt_tokens"] - by_name[call["session"]][0].prompt for call in calls if call["turn"] == 0]
    return round(statistics.median(more) / 2)  # of two messages: what was observed, and the instructions


def _layout(run: Run, machine: Machine) -> Layout:
    names = model_names(run.models)
    prefill, decode = len(machine.prefill_cores), len(machine.decode_cores)
    if run.system == "colocated":
        return Layout("colocated", names, decode_devices=prefill + decode)
    return Layout(
        "per-model" if run.system == "per-model" else "shared",
        names,
        decode_pools=1 if run.system == "shared-lora" else None,
        prefill_devices=prefill,
        decode_devices=decode,
    )


def _of_one_worker(profile: WorkerProfile, run: Run, machine: Machine) -> WorkerProfile:
    """With its share of the KV memory."""
    if run.system == "colocated":
        each = (machine.prefill_kv_tokens + machine.decode_kv_tokens) // run.models
        return replace(profile, kv_tokens=each, decode_kv_tokens=each)
    prefill = machine.prefill_kv_tokens // (run.models if run.system == "per-model" else 1)
    decode = machine.decode_kv_tokens // (1 if run.system == "shared-lora" else run.models)
    return replace(profile, kv_tokens=prefill, decode_kv_tokens=decode)


def _row(record: CallRecord) -> dict[str, float]:
    return {
        "at": record.arrived_s,
        "latency_s": record.latency_s,
        "ttft_s": record.ttft_s,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
    }


def _figures(calls: Sequence[Mapping[str, Any]], sessions: Sequence[float]) -> dict[str, float]:
    found = {"session_p95_s": percentile(sorted(sessions), 95)}
    for name in ("latency", "ttft"):
        ordered = sorted(call[f"{name}_s"] for call in calls)
        found |= {f"{name}_p{share}_s": percentile(ordered, share) for share in (50, 95)}
    seconds = max(call["at"] + call["latency_s"] for call in calls) - min(call["at"] for call in calls)
    prompt_tokens = sum(call["prompt_tokens"] for call in calls)
    return found | {
        "calls_per_s": len(calls) / seconds,
        "hit_ratio": sum(call["cached_tokens"] for call in calls) / prompt_tokens,
    }


def table(runs: Sequence[Compared]) -> str:
    """Each cell: measured, simulated, and the error of the latter; medians over repeats. Then the systems' ratios."""
    lines = [f"| workload, load | system | {' | '.join(FIGURES.values())} |", f"|---|---|{'---|' * len(FIGURES)}"]
    for title, system in dict.fromkeys((run.title, run.system) for run in runs):
        within = [run for run in runs if (run.title, run.system) == (title, system)]
        cells = []
        for name in FIGURES:
            one, two = (statistics.median(getattr(run, side)[name] for run in within) for side in SIDES)
            cells.append(f"{one:.3g}, {two:.3g} ({two / one - 1:+.0%})" if one else "-")
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


def ratios(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """How many times better `shared` is than each other system on the same sessions."""
    ours = {(run.title, run.repeat): run for run in runs if run.system == "shared"}
    found = []
    for other in runs:
        shared = ours.get((other.title, other.repeat))
        if shared is None or other is shared:
            continue
        for figure, more_is_better in RATIOS.items():
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
        "--publish", action="store_true", help="write docs/results/calibration.json and the table of docs/simulation.md"
    )
    options = parser.parse_args()
    try:
        runs = _compare_all(options.results, load_tokenise(options.base))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    if options.publish:
        content = {
            "costs": json.loads((options.results / FILE).read_text()),
            "ratios": ratios(runs),
            "runs": [vars(run) for run in runs],
        }
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        write_section(PAGE, START, table(runs))
    return 0


def _compare_all(results: Path, tokenise: Tokenise) -> list[Compared]:
    files = sorted((results / "runs").glob("*.json"))
    if not files:
        raise UserError(f"{results}: no run has ended here; run `prefillshare bench run {results} --base ...`")
    runs = []
    for file in files:
        rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
        runs.append(compare(json.loads(file.read_text()), rows, tokenise, results / FILE))
    return runs


if __name__ == "__main__":
    sys.exit(main())
