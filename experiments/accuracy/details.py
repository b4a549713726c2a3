"""What stands behind the tables of the page: by seed, by learning rate, and what was run for them."""

import json

from experiments.accuracy.cells import Answerer, Record
from experiments.accuracy.results import FamilyResult
from experiments.accuracy.statistics import mean, paired_difference

NAMES: dict[Answerer, str] = {
    "base": "base",
    "full": "full fine-tuning",
    "naive": "naive sharing",
    "decode": "decode module",
}
COMPARED: tuple[Answerer, Answerer] = ("decode", "naive")  # with full fine-tuning

_HEAD = """# How accurate decode modules are: by seed and by learning rate

    python -m experiments.accuracy table

What these figures are of is told in [accuracy.md](../accuracy.md)."""


def details(families: list[FamilyResult], records: list[Record]) -> str:
    """Markdown, a page of its own."""
    lines = [_HEAD, *_seeds_table(families), *_rates_table(families)]
    return "\n".join([*lines, "", "## What was run", "", _what_was_run(families, records), ""])


def _seeds_table(families: list[FamilyResult]) -> list[str]:
    lines = ["", "## By seed", "", "Test items; each interval is over this seed's items alone:", ""]
    head = "| family | seed | " + " | ".join(NAMES[key] for key in ("full", "naive", "decode"))
    lines += [f"{head} | decode - full | naive - full |", "|---" * 7 + "|"]
    for result in families:
        for number, seed in enumerate(result.seeds):
            bits = {key: [of_all[number]] for key, of_all in result.bits.items()}
            cells = [f"{100 * mean(bits[key]):.1f}" for key in ("full", "naive", "decode")]
            cells += [str(paired_difference([(bits[key], bits["full"])])) for key in COMPARED]
            lines.append(f"| {result.family} | {seed} | {' | '.join(cells)} |")
    return lines


def _rates_table(families: list[FamilyResult]) -> list[str]:
    lines = [
        "",
        "## Validation items, by learning rate",
        "",
        "Means over the seeds, and how many chose a rate. Rates that not every seed has are not listed:",
        "",
        "| family | learning rate | full fine-tuning | naive sharing | decode module | chosen: full | decode |",
        "|---" * 7 + "|",
    ]
    for result in families:
        for rate, accuracy in sorted(result.sweep.items()):
            cells = " | ".join(f"{100 * accuracy[key]:.1f}" for key in ("full", "naive", "decode"))
            chosen = " | ".join(str(result.rates[system].count(rate)) for system in ("full", "decode"))
            lines.append(f"| {result.family} | {rate:g} | {cells} | {chosen} |")
    return lines


def _what_was_run(families: list[FamilyResult], records: list[Record]) -> str:
    names = {result.family for result in families}
    used = [record for record in records if record.cell.family in names]
    trainings = [record.training["seconds"] for record in used if record.training]
    scorings = [s["seconds"] for record in used for part in record.scores.values() for s in part.values()]
    environments = sorted({json.dumps(record.environment, sort_keys=True) for record in used})
    settings = "; ".join(", ".join(f"{k} {v}" for k, v in json.loads(each).items()) for each in environments)
    return (
        f"{len(trainings)} trainings of {sum(trainings) / 3600:.1f} hours and {len(scorings)} scorings of "
        f"{sum(scorings) / 3600:.1f} hours. Settings: {settings}."
    )
