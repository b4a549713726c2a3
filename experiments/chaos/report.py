"""A run in figures, and as the tables of docs/chaos.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.chaos.run import DEADLINE_S, Found

START = "<!-- table: python -m experiments.chaos -->"
_VERDICTS = ("served", "failed", "left", "wrong", "undocumented", "hung")


def summary(found: Found, *, seed: int, minutes: float, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What docs/results/chaos.json holds. Times in seconds."""
    struck = Counter(
        f"{strike['event']} {strike['part']}" for strike in found.strikes if strike["event"] in ("kill", "stop")
    )
    return {
        "environment": dict(environment),
        "seed": seed,
        "minutes": minutes,
        "deadline_s": DEADLINE_S,
        "clean": found.clean,
        "strikes": dict(sorted(struck.items())),
        "skipped_strikes": sum(strike["event"] == "skipped" for strike in found.strikes),
        "calls": {verdict: _count(found, verdict) for verdict in _VERDICTS},
        "tokens_served": sum(call["tokens"] for call in found.calls if call["verdict"] == "served"),
        "errors": dict(Counter(_error(call) for call in found.calls if call["code"])),
        "seconds": {verdict: _spread(found, verdict) for verdict in ("served", "failed")},
        "retries": found.retries,
        "legs_ended": found.cuts,
        "all_workers_came_back": found.recovered,
        "served_afterwards": found.served_after,
        "left_in_pools": found.left_in_pools,
    }


def table(result: Mapping[str, Any]) -> str:
    calls, strikes = result["calls"], result["strikes"]
    rows = [
        ("minutes, seed", f"{result['minutes']:g}, {result['seed']}"),
        ("workers killed (all of one, its server, its engine)", _parts(strikes, "kill")),
        ("workers stopped for 1 to 25 s (same)", _parts(strikes, "stop")),
        ("calls", f"{sum(calls.values()):,}"),
        ("served: exactly the reference's tokens", f"{calls['served']:,} ({result['tokens_served']:,} tokens)"),
        ("failed with a documented error", f"{calls['failed']:,}: {_listed(result['errors'])}"),
        ("left by their clients", f"{calls['left']:,}"),
        ("**wrong tokens**", f"**{calls['wrong']}**"),
        (f"**no end within {result['deadline_s']:g} s**", f"**{calls['hung']}**"),
        ("**errors that are not documented**", f"**{calls['undocumented']}**"),
        ("seconds of calls that were served: median, p99, longest", _times(result["seconds"]["served"])),
        ("seconds of calls that failed: median, p99, longest", _times(result["seconds"]["failed"])),
        ("retries, by leg and reason", _listed(result["retries"])),
        ("legs ended at workers that were found down", str(result["legs_ended"])),
        ("afterwards: workers up, each module serves, KV pools empty", _afterwards(result)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _count(found: Found, verdict: str) -> int:
    return sum(call["verdict"] == verdict for call in found.calls)


def _error(call: Mapping[str, Any]) -> str:
    return f"{call['code']}{' in a stream' if call['tokens'] else ''}"


def _spread(found: Found, verdict: str) -> dict[str, float]:
    seconds = sorted(call["seconds"] for call in found.calls if call["verdict"] == verdict)
    if not seconds:
        return {}
    return {"median": _at(seconds, 0.5), "p99": _at(seconds, 0.99), "longest": seconds[-1]}


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def _parts(strikes: Mapping[str, int], kind: str) -> str:
    return ", ".join(str(strikes.get(f"{kind} {part}", 0)) for part in ("all", "server", "engine"))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _times(spread: Mapping[str, float]) -> str:
    return ", ".join(f"{spread[name]:.1f}" for name in ("median", "p99", "longest")) if spread else "-"


def _afterwards(result: Mapping[str, Any]) -> str:
    good = (result["all_workers_came_back"], result["served_afterwards"], not result["left_in_pools"])
    return ", ".join("yes" if each else "**no**" for each in good)
