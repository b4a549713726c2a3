"""What the router costs: latency that it adds, requests and streamed tokens that a core carries.

    python -m experiments.overhead [--vllm-router COMMAND]

Workers answer at once, so what is left is the router's. Beside it, in turns: a reverse proxy of the same ASGI stack
that passes bytes through one leg, one that makes two posts, and vllm-router (Rust, PyPI) in its prefill/decode mode,
where it is on the PATH or given. Routers are pinned to one core, load and workers to another. Writes
docs/results/overhead.json and .png and the tables of docs/overhead.md. About 6 minutes, of a machine that does nothing
else.
"""

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress

from experiments.environment import load_when_quiet, versions
from experiments.overhead import report
from experiments.overhead.client import Failed, load, requests
from experiments.overhead.routers import MODEL
from experiments.overhead.systems import DIRECT, NotStarted, System, running, worker_ports
from experiments.section import write_section

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / "artifacts" / "overhead"
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "overhead.md"
_WARM_UP = 50  # requests


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load. `seconds` bounds it, and `most` the number of its requests."""

    name: str
    prompt_tokens: int
    answer_tokens: int
    stream: bool
    at_once: int
    seconds: float
    most: int


CELLS = (
    Cell("latency-250", 250, 16, False, 1, 20.0, 400),
    Cell("latency-2000", 2000, 16, False, 1, 20.0, 400),
    Cell("latency-16000", 16_000, 16, False, 1, 20.0, 200),
    Cell("requests", 2000, 16, False, 32, 3.0, 10**9),
    Cell("tokens", 2000, 256, True, 32, 4.0, 10**9),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each system (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="2 rounds, to see that it works: writes to artifacts/ only"
    )
    parser.add_argument("--first-port", type=int, default=8500, help="of eight on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--vllm-router", default=shutil.which("vllm-router"), help="its command (default: on the PATH)")
    options = parser.parse_args()
    sys.exit(run(options, Console(width=None if sys.stdout.isatty() else 120)))


def run(options: argparse.Namespace, console: Console) -> int:
    rounds = 2 if options.quick else options.rounds
    before = uvloop.run(load_when_quiet(console))
    if not options.vllm_router:
        console.print("vllm-router is neither on the PATH nor given: measuring without it")
    try:
        with (
            running(options.first_port, options.vllm_router, SCRATCH / "logs") as systems,
            Progress(console=console) as progress,
        ):
            task = progress.add_task("rounds", total=rounds * len(CELLS))
            records = []
            for number in range(rounds):
                for cell in CELLS:
                    records += uvloop.run(_turn(number, cell, systems, options.first_port))
                    progress.advance(task)
    except (NotStarted, Failed) as error:
        console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    environment = {"rounds": rounds, "load_before": round(before, 2)}
    _write(
        {"environment": environment | versions("aiohttp", "starlette", "uvicorn"), "records": records}, options, console
    )
    return 0


async def _turn(number: int, cell: Cell, systems: list[System], first_port: int) -> list[dict[str, Any]]:
    """One round of a cell: every system once, beginning with another one each time."""
    prepared = requests(MODEL, cell.prompt_tokens, cell.answer_tokens, stream=cell.stream)
    turns: list[System | None] = [None, *systems]
    turns = turns[number % len(turns) :] + turns[: number % len(turns)]
    found = []
    for system in turns:
        ports = worker_ports(first_port)[:2] if system is None else [system.port]
        await load(ports, prepared, at_once=cell.at_once, seconds=cell.seconds, most=_WARM_UP)
        cpu = system.cpu_seconds() if system else 0.0
        timings = await load(ports, prepared, at_once=cell.at_once, seconds=cell.seconds, most=cell.most)
        used = system.cpu_seconds() - cpu if system else None
        found.append(
            {
                "round": number,
                "cell": cell.name,
                "system": system.name if system else DIRECT,
                "requests": len(timings.seconds),
                "answer_tokens": cell.answer_tokens,
                "wall_s": round(timings.wall, 4),
                "p50_ms": round(1000 * statistics.median(timings.seconds), 4),
                "p99_ms": round(1000 * _percentile(timings.seconds, 0.99), 4),
                "cpu_s": used and round(used, 3),
            }
        )
    return found


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _write(result: dict[str, Any], options: argparse.Namespace, console: Console) -> None:
    tables = {
        report.LATENCY_START: report.latency_table(result["records"]),
        report.THROUGHPUT_START: report.throughput_table(result["records"]),
    }
    folder = SCRATCH if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    report.draw(result["records"], folder / "overhead.png")
    for start, table in tables.items():
        if not options.quick:
            write_section(PAGE, start, table)
        console.print(f"\n{table}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
