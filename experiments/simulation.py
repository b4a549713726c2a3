"""What this machine cannot measure: the figures of docs/simulation.md, simulated.

    python -m experiments.simulation paper      # the paper's set-up: 4 models, 4 + 4 A100s, load by load (3 minutes)
    python -m experiments.simulation models     # 1 to 8 models, as many GPUs for prefill and decode each (1 minute)
    python -m experiments.simulation cluster    # 1,000 GPUs and a million sessions, one cell after another (5 minutes)

Each writes its figures to docs/results/ as JSON and, but for the last, a plot. The same command gives the same figures,
except for how long the simulation took.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.hardware import worker_profile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import Totals
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import many, model_names, rough_tokenise, shapes_of
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson
from prefillshare.workloads.sources import open_workload

RESULTS = Path(__file__).parent.parent / "docs" / "results"
MODEL, HARDWARE = "llama-3.1-8b", "a100-80g"
DIFFERENT_SESSIONS = 300  # drawn; runs draw from these

# Sessions at a time, and how many sessions a run has at least: Reflexion's have four times as many calls.
PAPER = {
    "react": ((20, 40, 80, 160, 240, 320, 480, 640), 600),
    "reflexion": ((20, 40, 80, 120, 160, 240, 320), 150),
    "tool_heavy": ((10, 20, 40, 60, 80, 120, 160, 240), 300),
}
KEPT = (
    "calls",
    "sessions",
    "latency_p50_s",
    "latency_p95_s",
    "session_p95_s",
    "ttft_p95_s",
    "tpot_p50_s",
    "calls_per_s",
    "sessions_per_s",
    "hit_ratio",
)
CELLS, CELL_PREFILL, CELL_DECODE = 25, 16, 6  # 25 cells of 16 prefill workers and 6 decode workers for each of 4 models
MILLION = 1_000_000


def simulate(
    layout: Layout, profile: WorkerProfile, source: str, arrivals: Arrivals, sessions: int, seed: int = 0
) -> dict[str, Any]:
    shapes, preamble = sessions_of(source, layout.models)
    totals, began = Totals(), time.perf_counter()
    run = Simulation(layout, profile, many(shapes, sessions, seed), arrivals, totals, preamble_tokens=preamble)
    outcome = run.run()
    found = totals.summary()
    return {
        "workload": source,
        "system": layout.system,
        "models": len(layout.models),
        "load": str(arrivals),
        **{name: round(found[name], 4) for name in KEPT},
        "prefill_busy": round(outcome.busy.get("prefill", 0.0), 3),
        "decode_busy": round(outcome.busy.get("decode", 0.0), 3),
        "simulated_s": round(outcome.ended_s, 1),
        "took_s": round(time.perf_counter() - began, 2),
        "events": outcome.events,
    }


def sessions_of(source: str, models: Sequence[str]) -> tuple[list[Shape], int]:
    workload = open_workload(source, rough_tokenise, sessions=DIFFERENT_SESSIONS)
    return shapes_of(workload, models), workload.preamble_tokens


def systems(models: int, gpus: int) -> list[Layout]:
    """Of so many GPUs for prefill and as many for decode; colocated workers have them all."""
    names, each = model_names(models), gpus // models
    return [
        Layout("shared", names, gpus, each),
        Layout("per-model", names, each, each),
        Layout("colocated", names, decode_workers=2 * each),
    ]


def paper() -> list[dict[str, Any]]:
    profile = worker_profile(HARDWARE, MODEL, link="nvlink")
    return [
        show(simulate(layout, profile, source, Closed(concurrent), max(least, 2 * concurrent)))
        for source, (loads, least) in PAPER.items()
        for concurrent in loads
        for layout in systems(4, 4)
    ]


def by_models() -> list[dict[str, Any]]:
    profile = worker_profile(HARDWARE, MODEL, link="nvlink")
    return [
        show(simulate(layout, profile, "tool_heavy", Closed(20 * models), 120 * models))
        for models in (1, 2, 4, 6, 8)
        for layout in systems(models, models)
    ]


def cluster(cells: int) -> list[dict[str, Any]]:
    """Tool-heavy sessions at two thirds of what a cell can take, over the network."""
    profile = worker_profile(HARDWARE, MODEL, block_size=128)
    layout = Layout("shared", model_names(4), CELL_PREFILL, CELL_DECODE)
    sessions = MILLION // CELLS
    return [show(simulate(layout, profile, "tool_heavy", Poisson(16.0, seed), sessions, seed)) for seed in range(cells)]


def show(record: dict[str, Any]) -> dict[str, Any]:
    print(" ".join(f"{name}={record[name]}" for name in ("workload", "system", "models", "load", *KEPT[3:], "took_s")))
    return record


def plot(records: Sequence[dict[str, Any]], across: Callable[[dict[str, Any]], int], label: str, file: Path) -> None:
    """A row of panels a workload: latency, throughput, hit ratio; a line a system."""
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(record["workload"] for record in records))
    panels = (("session_p95_s", "session p95 (s)"), ("sessions_per_s", "sessions a second"), ("hit_ratio", "hit ratio"))
    figure = Figure(figsize=(11, 3 * len(workloads)), dpi=110, layout="constrained")
    axes = figure.subplots(len(workloads), len(panels), squeeze=False)
    for row, workload in zip(axes, workloads, strict=True):
        for axis, (name, title) in zip(row, panels, strict=True):
            for system in dict.fromkeys(record["system"] for record in records):
                points = [record for record in records if (record["workload"], record["system"]) == (workload, system)]
                axis.plot([across(point) for point in points], [point[name] for point in points], "o-", label=system)
            axis.set(xlabel=label, ylabel=title, title=workload)
            if name == "session_p95_s":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0, top=1 if name == "hit_ratio" else None)
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(file, format="png")


def write(name: str, records: Sequence[dict[str, Any]]) -> None:
    about = {"model": MODEL, "hardware": HARDWARE, "seed": 0}
    (RESULTS / f"simulation-{name}.json").write_text(
        json.dumps({"settings": about, "records": records}, indent=1) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=("paper", "models", "cluster"))
    parser.add_argument(
        "--cells", type=int, default=CELLS, help=f"of `cluster`, of {CELLS} that are alike but for chance"
    )
    arguments = parser.parse_args()
    if arguments.figure == "paper":
        write("paper", records := paper())
        plot(records, lambda record: int(record["load"].removeprefix("closed:")), "sessions at a time", _png("paper"))
    elif arguments.figure == "models":
        write("models", records := by_models())
        plot(records, lambda record: int(record["models"]), "models (20 sessions at a time for each)", _png("models"))
    else:
        write("cluster", cluster(arguments.cells))


def _png(name: str) -> Path:
    return RESULTS / f"simulation-{name}.png"


if __name__ == "__main__":
    main()
