"""The table, its JSON and its plot, from the records alone."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.accuracy.cells import Answerer, Record, System, best, comparable, read
from experiments.accuracy.families import COUNTED, FAMILIES
from experiments.accuracy.plot import draw
from experiments.accuracy.statistics import Bits, Difference, mean, paired_difference
from experiments.section import write_section
from prefillshare.errors import UserError

NAMES: dict[Answerer, str] = {
    "base": "base",
    "full": "full fine-tuning",
    "naive": "naive sharing",
    "decode": "decode module",
}
_TRAINED: dict[Answerer, System] = {"base": "base", "full": "full", "naive": "full", "decode": "decode"}
START = "<!-- table: python -m experiments.accuracy table -->"
# What has to be equal for results of several seeds to be put together; the data are drawn anew for each.
_PER_SEED = {"data"}


@dataclass(frozen=True)
class FamilyResult:
    """One family over the seeds for which every system has been scored on the test items.

    Only rates that both systems have been trained at, in one dtype, count: a wider sweep would favour one of them.
    """

    family: str
    seeds: list[int]
    bits: dict[Answerer, list[list[int]]]  # by answerer, seed, item
    rates: dict[str, list[float]]  # the best rate by system and seed
    sweep: dict[float, dict[Answerer, float]]  # validation accuracy by rate and answerer, mean over these seeds
    training_s: dict[str, float]  # mean seconds of a training, by system

    def pair(self, one: Answerer, other: Answerer) -> tuple[Bits, Bits]:
        return self.bits[one], self.bits[other]


def write_report(results: Path, docs: Path) -> str:
    """Writes docs/results/accuracy.json, docs/accuracy.png and the marked section of docs/accuracy.md.

    Raises:
        UserError: no family is complete for any seed, or records of different recipes lie side by side.
    """
    records = [read(file) for file in sorted(results.glob("[!.]*.json"))]
    families = [result for name in FAMILIES if (result := _family_result(name, records)) is not None]
    if not _counted(families):
        raise UserError(
            f"{results}: no family has all systems scored for any seed; run `python -m experiments.accuracy run`"
        )
    text = table(families, records)
    write_section(docs / "accuracy.md", START, text)
    (docs / "results" / "accuracy.json").write_text(json.dumps(as_json(families), indent=1) + "\n")
    draw([(result.family, {NAMES[key]: mean(bits) for key, bits in result.bits.items()}) for result in families], docs)
    return text


def table(families: list[FamilyResult], records: list[Record]) -> str:
    """Markdown: the test items at each system's best rate, the sweep on the validation items, and what was run."""
    head = "| family, held out by | items x seeds | " + " | ".join(NAMES.values())
    lines = [f"{head} | decode - full | naive - full |", "|---" * (len(NAMES) + 4) + "|"]
    counted = _counted(families)
    lines += [_row(result) for result in counted]
    average = " | ".join(f"{100 * sum(mean(r.bits[key]) for r in counted) / len(counted):.1f}" for key in NAMES)
    differences = " | ".join(str(_overall(counted, key)) for key in _COMPARED)
    lines += [f"| mean of {len(counted)} | | {average} | {differences} |"]
    lines += [_row(result) for result in families if result not in counted]
    lines += ["", "Validation items, by learning rate (mean over the seeds), and the seeds that chose it:", ""]
    lines += [
        "| family | learning rate | full fine-tuning | naive sharing | decode module | chosen: full | decode |",
        "|---" * 7 + "|",
    ]
    for result in families:
        for rate, accuracy in sorted(result.sweep.items()):
            cells = " | ".join(f"{100 * accuracy[key]:.1f}" for key in ("full", "naive", "decode"))
            chosen = " | ".join(str(result.rates[system].count(rate)) for system in ("full", "decode"))
            lines.append(f"| {result.family} | {rate:g} | {cells} | {chosen} |")
    return "\n".join([*lines, "", _what_was_run(families, records)])


def _counted(families: list[FamilyResult]) -> list[FamilyResult]:
    return [result for result in families if result.family in COUNTED]


def _row(result: FamilyResult) -> str:
    accuracies = " | ".join(f"{100 * mean(result.bits[key]):.1f}" for key in NAMES)
    items = f"{len(result.bits['full'][0])} x {len(result.seeds)}"
    differences = " | ".join(str(paired_difference([result.pair(key, "full")])) for key in _COMPARED)
    return f"| {result.family}, {FAMILIES[result.family].held_out} | {items} | {accuracies} | {differences} |"


_COMPARED: tuple[Answerer, Answerer] = ("decode", "naive")


def _overall(families: list[FamilyResult], key: Answerer) -> Difference:
    return paired_difference([result.pair(key, "full") for result in families])


def as_json(families: list[FamilyResult]) -> dict[str, Any]:
    return {
        "families": {
            result.family: {
                "seeds": result.seeds,
                "accuracy": {key: mean(bits) for key, bits in result.bits.items()},
                "accuracy_by_seed": {key: [mean([seed]) for seed in bits] for key, bits in result.bits.items()},
                "best_rates": result.rates,
                "points": {key: asdict(paired_difference([result.pair(key, "full")])) for key in _COMPARED},
                "validation": {f"{rate:g}": accuracy for rate, accuracy in sorted(result.sweep.items())},
                "training_seconds": result.training_s,
            }
            for result in families
        },
        "mean_of": [result.family for result in _counted(families)],
        "points": {key: asdict(_overall(_counted(families), key)) for key in _COMPARED},
    }


def _family_result(name: str, records: list[Record]) -> FamilyResult | None:
    groups = _at_common_rates([record for record in records if record.cell.family == name])
    chosen: dict[int, dict[str, Record]] = defaultdict(dict)
    for (seed, system), group in groups.items():
        top = group[0] if system == "base" else best(group)
        if "test" in top.scores:
            chosen[seed][system] = top
    seeds = sorted(seed for seed, systems in chosen.items() if len(systems) == 3)
    if not seeds:
        return None
    used = [record for seed in seeds for system in ("base", "full", "decode") for record in groups[seed, system]]
    _check_comparable(name, used)
    bits = {key: [chosen[seed][system].right("test", key) for seed in seeds] for key, system in _TRAINED.items()}
    tuned = [record for record in used if record.cell.system != "base"]
    systems = ("full", "decode")
    return FamilyResult(
        name,
        seeds,
        bits,
        {system: [chosen[seed][system].cell.rate or 0.0 for seed in seeds] for system in systems},
        _sweep(tuned, len(seeds)),
        {system: _mean_seconds([record for record in tuned if record.cell.system == system]) for system in systems},
    )


def _at_common_rates(records: list[Record]) -> dict[tuple[int, System], list[Record]]:
    """By seed and system: base, and both systems at the rates at which they can be compared."""
    groups: dict[tuple[int, System], list[Record]] = defaultdict(list)
    decode = {(record.cell.seed, record.cell.rate): record for record in records if record.cell.system == "decode"}
    for record in records:
        seed, rate = record.cell.seed, record.cell.rate
        if record.cell.system == "base":
            groups[seed, "base"].append(record)
        elif record.cell.system == "full" and (pair := decode.get((seed, rate))) and comparable(record, pair):
            groups[seed, "full"].append(record)
            groups[seed, "decode"].append(pair)
    return groups


def _sweep(tuned: list[Record], seeds: int) -> dict[float, dict[Answerer, float]]:
    """Only rates at which both systems were trained with every seed: others would be means of something else."""
    sweep = {}
    for rate in {record.cell.rate for record in tuned if record.cell.rate is not None}:
        of_rate = [record for record in tuned if record.cell.rate == rate]
        if len(of_rate) == 2 * seeds:
            sweep[rate] = {
                key: mean([record.right("validation", key) for record in of_rate if record.cell.system == system])
                for key, system in _TRAINED.items()
                if system != "base"
            }
    return sweep


def _check_comparable(name: str, records: list[Record]) -> None:
    recipes = [{key: value for key, value in record.recipe.items() if key not in _PER_SEED} for record in records]
    of_seed = {(record.cell.seed, record.recipe["data"]) for record in records}
    if any(other != recipes[0] for other in recipes) or len(of_seed) != len({seed for seed, _ in of_seed}):
        raise UserError(f"the records of {name} were made by different recipes; remove those that are out of date")


def _mean_seconds(records: list[Record]) -> float:
    return round(sum(record.training["seconds"] for record in records) / len(records), 1)


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
