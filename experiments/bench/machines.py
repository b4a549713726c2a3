"""The table of the machines that figures were measured on."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from os.path import relpath
from pathlib import Path
from typing import Any

from experiments.bench import places
from prefillshare.bench.costs import FILE, measured_with, read
from prefillshare.bench.figures import recorded
from prefillshare.bench.systems import Machine
from prefillshare.simulate.cost import Cost

# Folders of results, what they were measured on, and where the page has them.
MACHINES = {
    "bench-limits": ("EPYC, bfloat16", "two-cores-of-an-epyc"),
    "bench": ("Xeon, bfloat16", "two-cores-of-a-xeon-whose-memory-is-slow"),
    "bench-both-cores": ("Xeon, bfloat16, decode workers on both cores", "decode-workers-on-both-cores"),
    "bench-epyc": ("EPYC with faster memory, bfloat16", "on-a-machine-with-faster-memory"),
    "bench-float32": ("AVX2, float32", "on-cores-without-bfloat16-units"),
    "bench-small-steps": ("AVX2, float32, steps of 256 tokens", "ordinary-vllms-with-short-steps"),
    "bench-short-contexts": ("AVX2, float32", "short-contexts-without-bfloat16-units"),
    "bench-repeats": ("AVX2, float32, repeats", "react-with-repeats-and-one-ordinary-vllm-with-all-adapters"),
    "bench-models": ("Xeon without bfloat16 units, float32", "one-two-and-four-models"),
}
_HEAD = (
    "runs",
    "folder",
    "processor",
    "measured on",
    "costs measured on",
    "decode step, ms",
    "prompt, s",
    "autogroups",
    "turns",
)
_TOKENS = 1000  # of the prompt, and before the decode step


def machines(page: Path) -> str:
    """A row a folder. What work costs is of one call alone, by the folder's costs."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    for folder, (name, anchor) in MACHINES.items():
        there = places.PUBLISHED.with_name(folder)
        runs = [facts for facts, _ in recorded(there)]
        environment = runs[0]["environment"]
        cost = read(there / FILE, Machine(), environment["kv_bytes_per_token"]).cost
        cells = [
            f"[{name}]({relpath(places.PAGES[1], page.parent)}#{anchor})",
            f"[{folder}]({relpath(there / places.ALL_FIGURES, page.parent)})",
            environment["processor"],
            _days(run["environment"]["when"] for run in runs),
            _days([measured_with(there / FILE)["when"]]),
            *_speed(cost),
            {True: "on", False: "off", None: "not known"}[environment.get("autogroups")],
            _turns(runs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _days(when: Iterable[str]) -> str:
    days = sorted({datetime.fromisoformat(each).date() for each in when})
    return " to ".join(dict.fromkeys(f"{day:%Y-%m-%d}" for day in (days[0], days[-1])))


def _speed(cost: Cost) -> list[str]:
    decode_s = cost.step(0, 0.0, 1, _TOKENS)
    prefill_s = cost.step(_TOKENS, _TOKENS * (_TOKENS + 1) / 2, 0, 0)
    return [f"{1e3 * decode_s:.0f}", f"{prefill_s:.1f}"]


def _turns(runs: Iterable[Mapping[str, Any]]) -> str:
    """Whether models took turns, of systems whose decode workers share a core. Records from before there were any do
    not say `turn_s`."""
    sharing = [run for run in runs if run["system"] in ("shared", "per-model")]
    with_turns = [bool(run.get("turn_s") or run["machine"].get("turn_s")) for run in sharing]
    return "yes" if all(with_turns) else "in part" if any(with_turns) else "no"
