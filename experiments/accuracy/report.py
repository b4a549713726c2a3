"""The tables of the page, their JSON and the plot, from the records alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.accuracy.cells import Answerer, read
from experiments.accuracy.details import COMPARED, NAMES, details
from experiments.accuracy.families import COUNTED, FAMILIES
from experiments.accuracy.plot import draw
from experiments.accuracy.results import Adapters, FamilyResult, MorePasses, SameTime, family_result
from experiments.accuracy.statistics import Difference, mean, paired_difference
from experiments.section import write_section
from prefillshare.errors import UserError

START = "<!-- table: python -m experiments.accuracy table -->"
DETAILS = "accuracy-tables.md"  # beside the records


def write_report(results: Path, docs: Path) -> str:
    """Writes docs/results/accuracy.json and accuracy-tables.md, docs/accuracy.png and the marked section of
    docs/accuracy.md, which is returned.

    Raises:
        UserError: no family is complete for any seed, or records of different recipes lie side by side.
    """
    records = [read(file) for file in sorted(results.glob("[!.]*.json"))]
    families = [result for name in FAMILIES if (result := family_result(name, records)) is not None]
    if not _counted(families):
        raise UserError(
            f"{results}: no family has all systems scored for any seed; run `python -m experiments.accuracy run`"
        )
    text = table(families)
    write_section(docs / "accuracy.md", START, text)
    (docs / "results" / DETAILS).write_text(details(families, records))
    (docs / "results" / "accuracy.json").write_text(json.dumps(as_json(families), indent=1) + "\n")
    draw([(result.family, {NAMES[key]: mean(bits) for key, bits in result.bits.items()}) for result in families], docs)
    return text


def table(families: list[FamilyResult]) -> str:
    """Markdown: the test items at each system's best rate, and then with longer trainings and adapters."""
    head = "| family, held out by | items x seeds | " + " | ".join(NAMES.values())
    lines = [f"{_FIRST}\n\n{head} | decode - full | naive - full |", "|---" * (len(NAMES) + 4) + "|"]
    counted = _counted(families)
    lines += [_row(result) for result in counted]
    average = " | ".join(f"{100 * sum(mean(r.bits[key]) for r in counted) / len(counted):.1f}" for key in NAMES)
    differences = " | ".join(str(_overall(counted, key)) for key in COMPARED)
    lines += [f"| mean of {len(counted)} | | {average} | {differences} |"]
    lines += [_row(result) for result in families if result not in counted]
    more = [
        line
        for part in (_same_time_table, _more_passes_table, _from_full_table, _adapters_table)
        for line in part(families)
    ]
    return "\n".join([*lines, *more])


_FIRST = "### At equal steps"


def _same_time_table(families: list[FamilyResult]) -> list[str]:
    known = [(result, result.same_time) for result in families if result.same_time]
    if not known:
        return []
    lines = [
        "",
        "### With as much time",
        "",
        "The decode module's longer training is a choice too; test items:",
        "",
    ]
    head = "| family | full fine-tuning | decode module | difference | seeds that chose more passes"
    lines += [f"{head} | time of all trainings |", "|---" * 6 + "|"]
    for result, longer in known:
        chosen = f"{sum(passes > 1 for passes in longer.passes)} of {len(longer.passes)}"
        cells = (mean(result.bits["full"]), mean(longer.bits))
        shown = " | ".join(f"{100 * accuracy:.1f}" for accuracy in cells)
        difference = paired_difference([(longer.bits, result.bits["full"])])
        lines.append(f"| {result.family} | {shown} | {difference} | {chosen} | {longer.time:.2f}x |")
    counted = [(result, longer) for result, longer in known if result.family in COUNTED]
    if len(counted) == len(_counted(families)):
        full, decode = (
            f"{100 * sum(mean(bits) for bits in of_all) / len(counted):.1f}"
            for of_all in ([r.bits["full"] for r, _ in counted], [longer.bits for _, longer in counted])
        )
        difference = paired_difference([(longer.bits, result.bits["full"]) for result, longer in counted])
        lines.append(f"| mean of {len(counted)} | {full} | {decode} | {difference} | | |")
    return lines


def _more_passes_table(families: list[FamilyResult]) -> list[str]:
    known = [
        (f"{result.family}, {how}", longer)
        for result in families
        for how, longer in (("as many steps", result.more_passes), ("as much time", result.as_long))
        if longer
    ]
    if not known:
        return []
    lines = ["", "### With more steps", "", "The longer training is among the choices of both; test items:", ""]
    head = "| family | items x seeds | full fine-tuning | naive sharing | decode module | decode - full | naive - full"
    lines += [f"{head} | seeds that chose more passes: full | decode | time of all trainings |", "|---" * 10 + "|"]
    for family, longer in known:
        bits = longer.bits
        cells = [f"{len(bits['full'][0])} x {len(bits['full'])}"]
        cells += [f"{100 * mean(bits[key]):.1f}" for key in ("full", "naive", "decode")]
        cells += [str(paired_difference([(bits[key], bits["full"])])) for key in COMPARED]
        cells += [str(sum(passes > 1 for passes in longer.passes[system])) for system in ("full", "decode")]
        cells += [f"{longer.time:.2f}x"]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return lines


def _from_full_table(families: list[FamilyResult]) -> list[str]:
    known = [(result.family, result.from_full.bits) for result in families if result.from_full]
    if not known:
        return []
    lines = [
        "",
        "### From full fine-tuning",
        "",
        "One pass of `start_from` after that longer full fine-tuning; test items:",
        "",
    ]
    head = "| family | items x seeds | full fine-tuning, longer | its weights on base KV | decode module from it"
    lines += [f"{head} | decode - full | by seed: full, on base KV, decode |", "|---" * 7 + "|"]
    for family, bits in known:
        cells = [f"{len(bits['full'][0])} x {len(bits['full'])}"]
        cells += [f"{100 * mean(bits[key]):.1f}" for key in bits]
        cells += [str(paired_difference([(bits["decode"], bits["full"])]))]
        seeds = zip(*bits.values(), strict=True)
        cells += ["; ".join(", ".join(f"{100 * mean([bits]):.1f}" for bits in seed) for seed in seeds)]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return lines


def _adapters_table(families: list[FamilyResult]) -> list[str]:
    known = [(result.family, result.adapters) for result in families if result.adapters]
    if not known:
        return []
    lines = [
        "",
        "### Adapters",
        "",
        "The decode module as LoRA, as many steps, at the best of its own rates; test items:",
        "",
    ]
    head = "| family | items x seeds | full fine-tuning | decode module, all weights | decode module, adapter"
    lines += [f"{head} | adapter - full | adapter - all weights | validation items by rate, and seeds that chose it |"]
    lines += ["|---" * 8 + "|"]
    for family, of in known:
        cells = [f"{len(of.adapter[0])} x {len(of.adapter)}"]
        cells += [f"{100 * mean(bits):.1f}" for bits in (of.bits["full"], of.bits["decode"], of.adapter)]
        cells += [str(paired_difference([(of.adapter, of.bits[key])])) for key in ("full", "decode")]
        tried = [f"{rate:g}: {100 * accuracy:.1f}, {of.rates.count(rate)}" for rate, accuracy in of.sweep.items()]
        lines.append(f"| {family} | {' | '.join([*cells, '; '.join(tried)])} |")
    return lines


def _counted(families: list[FamilyResult]) -> list[FamilyResult]:
    return [result for result in families if result.family in COUNTED]


def _row(result: FamilyResult) -> str:
    accuracies = " | ".join(f"{100 * mean(result.bits[key]):.1f}" for key in NAMES)
    items = f"{len(result.bits['full'][0])} x {len(result.seeds)}"
    differences = " | ".join(str(paired_difference([result.pair(key, "full")])) for key in COMPARED)
    return f"| {result.family}, {FAMILIES[result.family].held_out} | {items} | {accuracies} | {differences} |"


def _overall(families: list[FamilyResult], key: Answerer) -> Difference:
    return paired_difference([result.pair(key, "full") for result in families])


def as_json(families: list[FamilyResult]) -> dict[str, Any]:
    return {
        "families": {
            result.family: {
                "seeds": result.seeds,
                "accuracy": {key: mean(bits) for key, bits in result.bits.items()},
                "accuracy_by_seed": _by_seed(result.bits),
                "best_rates": result.rates,
                "points": {key: asdict(paired_difference([result.pair(key, "full")])) for key in COMPARED},
                "validation": {f"{rate:g}": accuracy for rate, accuracy in sorted(result.sweep.items())},
                "training_seconds": result.training_s,
                "same_time": result.same_time and _same_time_json(result, result.same_time),
                "more_passes": result.more_passes and _more_passes_json(result.more_passes),
                "as_long": result.as_long and _more_passes_json(result.as_long),
                "adapters": result.adapters and _adapters_json(result.adapters),
                "from_full": result.from_full and _by_seed(result.from_full.bits),
            }
            for result in families
        },
        "mean_of": [result.family for result in _counted(families)],
        "points": {key: asdict(_overall(_counted(families), key)) for key in COMPARED},
    }


def _by_seed(bits: dict[Answerer, list[list[int]]]) -> dict[Answerer, list[float]]:
    return {key: [mean([seed]) for seed in seeds] for key, seeds in bits.items()}


def _same_time_json(result: FamilyResult, longer: SameTime) -> dict[str, Any]:
    return {
        "accuracy": mean(longer.bits),
        "accuracy_by_seed": [mean([seed]) for seed in longer.bits],
        "passes": longer.passes,
        "points": asdict(paired_difference([(longer.bits, result.bits["full"])])),
        "time": longer.time,
    }


def _more_passes_json(longer: MorePasses) -> dict[str, Any]:
    return {
        "accuracy_by_seed": _by_seed(longer.bits),
        "passes": longer.passes,
        "points": {key: asdict(paired_difference([(longer.bits[key], longer.bits["full"])])) for key in COMPARED},
        "time": longer.time,
    }


def _adapters_json(adapters: Adapters) -> dict[str, Any]:
    return {
        "accuracy_by_seed": [mean([seed]) for seed in adapters.adapter],
        "best_rates": adapters.rates,
        "points": {
            key: asdict(paired_difference([(adapters.adapter, adapters.bits[key])])) for key in ("full", "decode")
        },
        "validation": {f"{rate:g}": accuracy for rate, accuracy in adapters.sweep.items()},
    }
