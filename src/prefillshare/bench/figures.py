"""The figures of one run, from its two files."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefillshare.bench.bound import Bound, bound
from prefillshare.bench.costs import FILE, measured_with, read
from prefillshare.bench.environment import differing
from prefillshare.bench.matrix import WorkloadConfig
from prefillshare.bench.open_loop import arrivals_a_minute, kept_up
from prefillshare.bench.percentiles import percentile_with_cut, percentile_with_unknown
from prefillshare.bench.systems import Machine, engine_cores
from prefillshare.errors import UserError
from prefillshare.workloads.arrivals import Closed, parse_arrivals

_SHARES = (0.5, 0.95, 0.99)
_TIMES = {"call s": "latency_s", "ttft s": "ttft_s", "queue s": "queue_s", "leg 1 s": "prefill_s"}
_BUSY = 0.85  # a core used more than this is what limits


@dataclass(frozen=True, slots=True)
class Slo:
    """What a call must keep to count for goodput, in seconds."""

    ttft_s: float = 5.0
    tpot_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Figures:
    """`values` by name, None where a run says nothing about it. `limit` is the core that was busy throughout.

    `bound_by` is what would be, in a system that wastes nothing. Values named in `at_least` are known
    only to be as large as they say, or larger: the sessions that would tell were cut off. `other_costs` says in what
    the machine that costs were measured on differs, if it does; nothing is then said of what is possible.
    """

    run: str
    system: str
    models: int
    workload: str
    load: str
    repeat: int
    values: dict[str, float | None]
    limit: str
    bound_by: str | None
    at_least: frozenset[str]
    facts: dict[str, Any]
    other_costs: str | None = None


def read_runs(output: Path, slo: Slo) -> list[Figures]:
    """The figures of every run that ended, by name.

    Raises:
        UserError: there are none.
    """
    costs = output / FILE
    return [_figures(facts, rows, slo, costs if costs.exists() else None) for facts, rows in recorded(output)]


def recorded(output: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What every run that ended left, by name: its facts, and the rows of its calls and sessions.

    Raises:
        UserError: there are none.
    """
    files = sorted((output / "runs").glob("*.json"))
    if not files:
        raise UserError(f"{output}: no run has ended here; run `prefillshare bench run {output} --base ...`")
    return [
        (json.loads(file.read_text()), list(map(json.loads, file.with_suffix(".jsonl").read_text().splitlines())))
        for file in files
    ]


def _figures(facts: dict[str, Any], rows: Sequence[dict[str, Any]], slo: Slo, costs: Path | None) -> Figures:
    calls = [row for row in rows if row["kind"] == "call"]
    sessions = [row for row in rows if row["kind"] == "session"]
    cores = _core_use(facts)
    busiest = max(cores, key=lambda group: cores[group])
    other_costs = _other_costs(facts["environment"], costs)
    least = None if other_costs else _bound(facts, calls, sessions, costs)
    is_open = not isinstance(parse_arrivals(facts["load"]), Closed)
    waits, bounded_waits = _session_latencies(sessions)
    latencies, bounded = _latencies(calls, _under_way(facts, rows))
    return Figures(
        run=facts["run"],
        system=facts["system"],
        models=facts["models"],
        workload=WorkloadConfig.model_validate(facts["workload"]).title,
        load=facts["load"],
        repeat=facts["repeat"],
        values={
            **latencies,
            **waits,
            **_rates(calls, sessions, facts["seconds"], slo),
            **_prefill(facts, calls, sessions),
            "hit ratio at best": _hit_ratio_at_best(calls),
            "least s possible": least.seconds if least else None,
            # An open loop takes as long as its sessions take to arrive, on the best of systems too.
            "of the possible speed": least.seconds / facts["seconds"] if least and not is_open else None,
            "arrivals a minute": arrivals_a_minute(sessions) if is_open else None,
            "kept up": kept_up(calls, sessions) if is_open else None,
            **{f"cpu of {group}": use for group, use in cores.items()},
        },
        limit=busiest if cores[busiest] >= _BUSY else "none",
        bound_by=least.limit if least else None,
        at_least=bounded_waits | bounded,
        facts=facts,
        other_costs=other_costs,
    )


def _other_costs(environment: Mapping[str, Any], costs: Path | None) -> str | None:
    if costs is None:
        return None
    there = measured_with(costs)
    names = differing(there, environment)
    return ", ".join(f"{name} {there[name]} instead of {environment[name]}" for name in names) or None


def _bound(facts: dict[str, Any], calls: Sequence[Any], sessions: Sequence[Any], costs: Path | None) -> Bound | None:
    if costs is None:
        return None
    profile = read(costs, Machine.model_validate(facts["machine"]), facts["environment"]["kv_bytes_per_token"])
    think_s = {row["session"]: row["latency_s"] - row["busy_s"] for row in sessions if finished(row)}
    return bound(facts, [call for call in calls if call["error"] is None], think_s, profile)


def _session_latencies(sessions: Sequence[Any]) -> tuple[dict[str, float | None], frozenset[str]]:
    """Also the names of those that are at least so large. Sessions that a failed call ended count as cut off."""
    ended, cut = ([row["latency_s"] for row in sessions if finished(row) is wanted] for wanted in (True, False))
    found, at_least = {}, set()
    for share in _SHARES:
        name = f"session s p{round(100 * share)}"
        found[name], is_bound = percentile_with_cut(ended, cut, share)
        if is_bound:
            at_least.add(name)
    return found, frozenset(at_least)


def _under_way(facts: dict[str, Any], rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The calls that were cut off at the end, as far as they are known. Records from before they were written have a
    session for each that may have been: it was cut off too, in a call or between two."""
    if "cut_calls" in facts:
        return [row for row in rows if row["kind"] == "cut"]
    return [{} for row in rows if row["kind"] == "session" and not finished(row) and row["error"] is None]


def _latencies(calls: Sequence[Any], cut: Sequence[Any]) -> tuple[dict[str, float | None], frozenset[str]]:
    """Also the names of those that are at least so large. `cut`: calls that were under way at the end; what they had
    behind them by then is known as that of others is. The time for a token of a call is its mean over the answer, so
    nothing is known of one that had not ended."""
    good = [call for call in calls if call["error"] is None]
    found: dict[str, float | None] = {}
    at_least = set()
    for name, field in _TIMES.items():
        values = [row[field] for row in (*good, *cut) if row.get(field) is not None]
        lacking = [row for row in cut if row.get(field) is None]
        # A first token that had not come would be later than the call was seen; whether it still queued is not known.
        seen = [row["seen_s"] for row in lacking if "seen_s" in row and field in ("latency_s", "ttft_s")]
        for share in _SHARES:
            full = f"{name} p{round(100 * share)}"
            if seen:
                found[full], is_bound = percentile_with_cut(values, seen, share)
            else:
                found[full], is_bound = percentile_with_unknown(values, len(lacking) if values else 0, share)
            if is_bound:
                at_least.add(full)
    tpot = [value for call in good if (value := _tpot(call)) is not None]
    for share in _SHARES:
        full = f"tpot s p{round(100 * share)}"
        found[full], is_bound = percentile_with_unknown(tpot, len(cut) if tpot else 0, share)
        if is_bound:
            at_least.add(full)
    return found | {"tpot s": statistics.mean(tpot) if tpot else None}, frozenset(at_least)


def _rates(calls: Sequence[Any], sessions: Sequence[Any], seconds: float, slo: Slo) -> dict[str, float | None]:
    good = [call for call in calls if call["error"] is None]
    kept = [
        call
        for call in good
        if call["ttft_s"] is not None and call["ttft_s"] <= slo.ttft_s and (_tpot(call) or 0.0) <= slo.tpot_s
    ]
    return {
        "calls a minute": 60 * len(good) / seconds,
        # Sessions that the limit cut off count for the calls that they made.
        "sessions a minute": 60 * _done(sessions) / seconds,
        "goodput, calls a minute": 60 * len(kept) / seconds,
        "sessions": float(len(sessions)),
        "unfinished sessions": float(sum(not finished(session) for session in sessions)),
        "failed calls": float(len(calls) - len(good)),
    }


def _prefill(facts: dict[str, Any], calls: Sequence[Any], sessions: Sequence[Any]) -> dict[str, float | None]:
    """Measured where prompts are computed: at prefill workers, or at ordinary vLLMs. In MB and tokens.

    Tokens a session are of calls that were answered, as sessions are counted: what workers count has the prompts of
    those that were cut off, too.
    """
    workers = facts["use"]["workers"]
    prefill = [worker for worker in workers if worker["role"] in ("prefill", "both")]
    queried, hit = (sum(worker[key] for worker in prefill) for key in ("queried_tokens", "hit_tokens"))
    computed = sum(call["prompt_tokens"] - call["cached_tokens"] for call in calls if call["error"] is None)
    done = _done(sessions)
    per_token = facts["environment"]["kv_bytes_per_token"]
    return {
        "prefix hit ratio": hit / queried if queried else None,
        "prefill tokens a session": computed / done if done else None,
        "KV moved a session, MB": sum(worker["pulled_bytes"] for worker in workers) / 1e6 / done if done else None,
        "peak KV, MB": _peak_kv_tokens(facts["use"]) * per_token / 1e6,
        "preemptions": sum(worker["preemptions"] for worker in workers),
    }


def _peak_kv_tokens(use: dict[str, Any]) -> float:
    """Of all workers together; in records from before that was measured, at most so many."""
    known: float | None = use.get("peak_kv_tokens")
    return sum(worker["peak_kv_tokens"] for worker in use["workers"]) if known is None else known


def _hit_ratio_at_best(calls: Sequence[Any]) -> float | None:
    """With caches of any size that all models share: all but what no earlier prompt of the session held."""
    good = [call for call in calls if call["error"] is None]
    if not good or any("new_tokens" not in call for call in good):
        return None
    return 1 - sum(call["new_tokens"] for call in good) / sum(call["prompt_tokens"] for call in good)


def _core_use(facts: dict[str, Any]) -> dict[str, float]:
    """Processor seconds a second, by what runs on a core: the prefill workers, the decode workers, ... Of an engine on
    several cores, for each of them."""
    use, seconds, machine = facts["use"], facts["use"]["seconds"], Machine.model_validate(facts["machine"])
    on_cores: dict[tuple[int, ...], tuple[set[str], float]] = {}
    for worker in use["workers"]:
        cores = tuple(sorted(engine_cores(worker["core"], machine)))
        roles, spent = on_cores.get(cores, (set(), 0.0))
        on_cores[cores] = (roles | {worker["role"]}, spent + worker["cpu_s"])
    named = {
        f"{_named(cores)} ({', '.join('vLLM' if role == 'both' else role for role in sorted(roles))})": spent
        / (seconds * len(cores))
        for cores, (roles, spent) in sorted(on_cores.items())
    }
    servers = sum(worker["server_cpu_s"] for worker in use["workers"])
    shares = {"API servers": servers, "router": use["router_cpu_s"], "driver": use["driver_cpu_s"]}
    return named | {name: spent / seconds for name, spent in shares.items()}


def _named(cores: Sequence[int]) -> str:
    return f"core{'s' * (len(cores) > 1)} {', '.join(map(str, cores))}"


def _tpot(call: Any) -> float | None:
    if call["ttft_s"] is None or call["output_tokens"] < 2:
        return None
    return float((call["latency_s"] - call["ttft_s"]) / (call["output_tokens"] - 1))


def finished(session: Any) -> bool:
    """Whether the row is of a session that ended by itself."""
    return session["error"] is None and session["calls"] == session["planned_calls"]


def _done(sessions: Sequence[Any]) -> float:
    return float(sum(session["calls"] / session["planned_calls"] for session in sessions))
