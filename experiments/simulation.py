"""What this machine cannot measure: the figures of docs/simulation.md, simulated.

    python -m experiments.simulation react        # a model for each role, 3 + 3 A100s, load by load
    python -m experiments.simulation reflexion    # 4 models on 4 + 4 A100s, as in the paper
    python -m experiments.simulation tool_heavy   # each of these takes less than a minute
    python -m experiments.simulation models       # 1 to 8 models, as many GPUs for prefill and for decode
    python -m experiments.simulation day          # 1,000 GPUs through a day, in windows: some minutes
    python -m experiments.simulation divisions    # its busiest hour with more or fewer GPUs for prefill: some minutes
    python -m experiments.simulation cluster      # 1,000 GPUs and a million sessions, call by call: 2 hours of a core

Each writes its figures to docs/results/ as JSON and, but for the last two, a plot. The same command gives the same
figures. The last one keeps the cells that are done in artifacts/ until it has them all, and goes on from them after a
stop.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefillshare.files import write_whole
from prefillshare.simulate import plan
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.hardware import worker_profile
from prefillshare.simulate.layout import Layout, SystemName
from prefillshare.simulate.records import Totals
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import many, model_names, rough_tokenise, shapes_of
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson
from prefillshare.workloads.sources import open_workload

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "docs" / "results"
SCRATCH = REPOSITORY / "artifacts" / "simulation"
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
    "tpot_p95_s",
    "calls_per_s",
    "sessions_per_s",
    "hit_ratio",
)
CELLS, CELL_MODELS, GPUS_A_MODEL = 25, 4, 10  # 25 cells of 4 models, with 10 GPUs for each
# Of a model's GPUs those that prefill: with sharing they are one pool; without, this serves most at the day's peak.
PREFILL: dict[SystemName, int] = {"shared": 4, "per-model": 8}
SMALL_STEPS = f"colocated, steps of {plan.SMALL_STEPS}"
CELL_RATE = 16.0  # sessions a second
MILLION = 1_000_000
# The load of a day has its peak, CELL_RATE, at 15:00 and its trough twelve hours apart. Of each hour one cell is
# simulated for a window; what begins in the first part of it fills the caches and is not counted.
PEAK_HOUR, TROUGH = 15, 0.3
WINDOW_S, WARM_UP_S = 300.0, 60.0
HOURS_OF_OTHERS = (3, 9, 12, 15)


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
    """Every cell by itself, so many sessions in each. Those that an earlier run has finished are taken from it."""
    folder = _cells_of(sessions)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"cell-{seed}.json" for seed in range(cells)]
    missing = [seed for seed, file in enumerate(files) if not file.exists()]
    if len(missing) < cells:
        print(f"{cells - len(missing)} of {cells} cells are in {folder}; remove it after a change of the simulator")
    with ProcessPoolExecutor() as executor:
        running = {executor.submit(_cell, seed, sessions): seed for seed in missing}
        try:
            for count, each in enumerate(as_completed(running), cells - len(missing) + 1):
                seed = running[each]
                write_whole(files[seed], json.dumps({"cell": seed, **each.result()}))
                print(f"{count} of {cells} cells")
        except KeyboardInterrupt:
            executor.shutdown(wait=False, cancel_futures=True)
            raise SystemExit(130) from None
    return [json.loads(file.read_text()) for file in files]


def _cells_of(sessions: int) -> Path:
    return SCRATCH / f"cluster-{sessions}"


def cell_systems() -> dict[str, Layout]:
    """What the GPUs of a cell can be: `shared`, and without sharing what serves these sessions best."""
    colocated = Layout("colocated", model_names(CELL_MODELS), decode_workers=GPUS_A_MODEL)
    divided = {system: _divided(system, prefill) for system, prefill in PREFILL.items()}
    return divided | {"colocated": colocated, SMALL_STEPS: colocated}


def _divided(system: SystemName, prefill: int) -> Layout:
    """A cell in which so many of each model's GPUs prefill, and the others decode."""
    pools = 1 if system == "shared" else CELL_MODELS
    return Layout(system, model_names(CELL_MODELS), prefill * CELL_MODELS // pools, GPUS_A_MODEL - prefill)


def _cell(
    seed: int,
    sessions: int,
    rate: float = CELL_RATE,
    since: float = 0.0,
    until: float | None = None,
    system: str = "shared",
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Tool-heavy sessions, over the network. Cells have nothing in common, so each is a simulation of its own.

    `layout`: if it is not that of `cell_systems`.
    """
    profile = worker_profile(HARDWARE, MODEL, block_size=128)
    if system == SMALL_STEPS:
        profile = replace(profile, max_num_batched_tokens=plan.SMALL_STEPS)
    began = time.process_time()
    layout = layout or cell_systems()[system]
    found = simulate(layout, profile, "tool_heavy", Poisson(rate, seed), sessions, seed, since, until)
    return show(found | {"system": system, "cpu_s": round(time.process_time() - began, 1)})


def day() -> list[dict[str, Any]]:
    """Every hour of `shared`, some of the others."""
    of_others = [(hour, system) for system in cell_systems() if system != "shared" for hour in HOURS_OF_OTHERS]
    hours, names = zip(*[(hour, "shared") for hour in range(24)], *of_others, strict=True)
    with ProcessPoolExecutor() as executor:
        return list(executor.map(_hour, hours, names))


def _hour(hour: int, system: str = "shared", layout: Layout | None = None) -> dict[str, Any]:
    rate = rate_at(hour)
    found = _cell(hour, round(rate * WINDOW_S), rate, WARM_UP_S, WINDOW_S, system, layout)
    return found | {"hour": hour, "sessions_in_the_hour": round(rate * 3600) * CELLS}


def divisions() -> list[dict[str, Any]]:
    """The peak of the day with the GPUs of a cell divided otherwise, of ten for each model."""
    tried: dict[SystemName, range] = {"shared": range(2, 7), "per-model": range(4, 10)}
    layouts = [_divided(system, prefill) for system, numbers in tried.items() for prefill in numbers]
    with ProcessPoolExecutor() as executor:
        found = executor.map(_hour, [PEAK_HOUR] * len(layouts), [layout.system for layout in layouts], layouts)
        return [record | _gpus(layout) for record, layout in zip(found, layouts, strict=True)]


def _gpus(layout: Layout) -> dict[str, int]:
    """Of both kinds, of all models."""
    prefill = sum(layout.prefill_numbers())
    return {"prefill_gpus": prefill, "decode_gpus": layout.workers() - prefill}


def rate_at(hour: int) -> float:
    """Sessions a second that begin in a cell."""
    swing = (1 + math.cos(2 * math.pi * (hour - PEAK_HOUR) / 24)) / 2
    return CELL_RATE * (TROUGH + (1 - TROUGH) * swing)


def plot_day(records: Sequence[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "sessions in the hour (million)": lambda record: record["sessions_in_the_hour"] / 1e6,
        "first token p95 (s)": lambda record: record["ttft_p95_s"],
        "hit ratio": lambda record: record["hit_ratio"],
        "GPUs busy, of the busier kind": lambda record: max(record["prefill_busy"], record["decode_busy"]),
    }
    figure = Figure(figsize=(13, 3), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        for system in dict.fromkeys(record["system"] for record in records):
            points = [record for record in records if record["system"] == system]
            axis.plot([each["hour"] for each in points], [value(each) for each in points], "o-", label=system)
        axis.set(xlabel="hour of the day", title=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small")
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
    parser.add_argument("figure", choices=(*PAPER, "models", "day", "divisions", "cluster"))
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
    elif arguments.figure == "divisions":
        write("divisions", divisions())
    else:
        write("cluster", cluster(arguments.cells, arguments.sessions))
        shutil.rmtree(_cells_of(arguments.sessions))


def _concurrent(record: dict[str, Any]) -> int:
    return int(record["load"].removeprefix("closed:"))


def _png(name: str) -> Path:
    return RESULTS / f"simulation-{name}.png"


if __name__ == "__main__":
    main()
