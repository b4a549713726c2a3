"""What this machine cannot measure: the figures of docs/simulation.md, simulated.

    python -m experiments.simulation react        # a model for each role, 3 + 3 A100s, load by load
    python -m experiments.simulation reflexion    # 4 models on 4 + 4 A100s, as in the paper
    python -m experiments.simulation tool_heavy   # each of these takes less than a minute
    python -m experiments.simulation models       # 1 to 8 models, as many GPUs for prefill and for decode
    python -m experiments.simulation day          # 1,000 GPUs through a day, in windows: some minutes
    python -m experiments.simulation cluster      # 1,000 GPUs and a million sessions, call by call: 90 min of a core

Each writes its figures to docs/results/ as JSON and, but for the last, a plot. The same command gives the same figures.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
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

# Models, one for each role, sessions at a time, and how many sessions a run has at least.
PAPER = {
    "react": (3, (20, 60, 120, 180, 240, 360, 480), 300),
    "reflexion": (4, (20, 60, 120, 180, 240, 320), 100),
    "tool_heavy": (4, (10, 20, 40, 80, 120, 160, 240), 240),
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
CELL_RATE = 16.0  # sessions a second
MILLION = 1_000_000
# The load of a day has its peak, CELL_RATE, at 15:00 and its trough twelve hours apart. Of each hour one cell is
# simulated for a window; what begins in the first part of it fills the caches and is not counted.
PEAK_HOUR, TROUGH = 15, 0.3
WINDOW_S, WARM_UP_S = 300.0, 60.0


def simulate(
    layout: Layout,
    profile: WorkerProfile,
    source: str,
    arrivals: Arrivals,
    sessions: int,
    seed: int = 0,
    since: float = 0.0,
    until: float | None = None,
) -> dict[str, Any]:
    """`since`: calls and sessions that begin earlier, in simulated seconds, are not counted. With `until` devices are
    watched between the two."""
    shapes, preamble = sessions_of(source, layout.models)
    totals = Totals(since)
    run = Simulation(
        layout,
        profile,
        many(shapes, sessions, seed),
        arrivals,
        totals,
        preamble_tokens=preamble,
        busy_within=None if until is None else (since, until),
    )
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


def paper(source: str) -> list[dict[str, Any]]:
    profile = worker_profile(HARDWARE, MODEL, link="nvlink")
    models, loads, least = PAPER[source]
    return [
        show(simulate(layout, profile, source, Closed(concurrent), max(least, 2 * concurrent)))
        for concurrent in loads
        for layout in systems(models, models)
    ]


def by_models() -> list[dict[str, Any]]:
    profile = worker_profile(HARDWARE, MODEL, link="nvlink")
    return [
        show(simulate(layout, profile, "tool_heavy", Closed(20 * models), 60 * models))
        for models in (1, 2, 4, 8)
        for layout in systems(models, models)
    ]


def cluster(cells: int, sessions: int) -> list[dict[str, Any]]:
    with ProcessPoolExecutor() as executor:
        return list(executor.map(_cell, range(cells), [sessions] * cells))


def _cell(
    seed: int, sessions: int, rate: float = CELL_RATE, since: float = 0.0, until: float | None = None
) -> dict[str, Any]:
    """Tool-heavy sessions, over the network. Cells have nothing in common, so each is a simulation of its own."""
    layout = Layout("shared", model_names(4), CELL_PREFILL, CELL_DECODE)
    profile = worker_profile(HARDWARE, MODEL, block_size=128)
    began = time.process_time()
    found = simulate(layout, profile, "tool_heavy", Poisson(rate, seed), sessions, seed, since, until)
    return show(found | {"cpu_s": round(time.process_time() - began, 1)})


def day() -> list[dict[str, Any]]:
    with ProcessPoolExecutor() as executor:
        return list(executor.map(_hour, range(24)))


def _hour(hour: int) -> dict[str, Any]:
    rate = rate_at(hour)
    found = _cell(hour, round(rate * WINDOW_S), rate, WARM_UP_S, WINDOW_S)
    return found | {"hour": hour, "sessions_in_the_hour": round(rate * 3600) * CELLS}


def rate_at(hour: int) -> float:
    """Sessions a second that begin in a cell."""
    swing = (1 + math.cos(2 * math.pi * (hour - PEAK_HOUR) / 24)) / 2
    return CELL_RATE * (TROUGH + (1 - TROUGH) * swing)


def plot_day(records: Sequence[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    panels = (
        ("sessions_in_the_hour", "sessions in the hour"),
        ("ttft_p95_s", "first token p95 (s)"),
        ("hit_ratio", "hit ratio"),
        ("prefill_busy", "prefill GPUs busy"),
    )
    figure = Figure(figsize=(13, 3), dpi=110, layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.plot([record["hour"] for record in records], [record[name] for record in records], "o-")
        axis.set(xlabel="hour of the day", title=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(file, format="png")


def show(record: dict[str, Any]) -> dict[str, Any]:
    print(" ".join(f"{name}={record[name]}" for name in ("workload", "system", "models", "load", *KEPT[3:])))
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
    parser.add_argument("figure", choices=(*PAPER, "models", "day", "cluster"))
    parser.add_argument("--cells", type=int, default=CELLS, help=f"of `cluster`: how many of its {CELLS}")
    parser.add_argument("--sessions", type=int, default=MILLION // CELLS, help="of `cluster`: in each cell")
    arguments = parser.parse_args()
    if arguments.figure in PAPER:
        write(arguments.figure, records := paper(arguments.figure))
        plot(records, _concurrent, "sessions at a time", _png(arguments.figure))
    elif arguments.figure == "models":
        write("models", records := by_models())
        plot(records, lambda record: int(record["models"]), "models (20 sessions at a time for each)", _png("models"))
    elif arguments.figure == "day":
        write("day", records := day())
        plot_day(records, _png("day"))
    else:
        write("cluster", cluster(arguments.cells, arguments.sessions))


def _concurrent(record: dict[str, Any]) -> int:
    return int(record["load"].removeprefix("closed:"))


def _png(name: str) -> Path:
    return RESULTS / f"simulation-{name}.png"


if __name__ == "__main__":
    main()
