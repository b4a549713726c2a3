"""What the records say of a family: the best of each system on the test items, and its sweep."""

from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import median

from experiments.accuracy.cells import Answerer, Record, System, best, comparable
from experiments.accuracy.families import FAMILIES
from experiments.accuracy.statistics import Bits, mean
from prefillshare.errors import UserError

_TRAINED: dict[Answerer, System] = {"base": "base", "full": "full", "naive": "full", "decode": "decode"}
# What has to be equal for results of several seeds to be put together; the data are drawn anew for each.
_PER_SEED = {"data"}


@dataclass(frozen=True)
class SameTime:
    """The decode module with its longer training among its choices, over the same seeds as the rest of a family.

    `time` is as in `MorePasses`.
    """

    bits: list[list[int]]
    passes: list[int]  # what was chosen, by seed
    time: float


@dataclass(frozen=True)
class MorePasses:
    """Each system with a longer training among its choices, over the seeds that have it of both systems.

    `time` is what all trainings of the decode module took, of what all of full fine-tuning's did. It goes by the ratio
    of a step's times, the median over pairs of trainings at one rate, since machines and numbers of threads differ
    between rates.
    """

    bits: dict[Answerer, list[list[int]]]
    passes: dict[System, list[int]]  # what was chosen, by seed
    time: float


@dataclass(frozen=True)
class FromFull:
    """One pass of the decode module from the checkpoint of full fine-tuning's longer training, beside that checkpoint
    on its own KV and on the base's; over the seeds that have it."""

    bits: dict[Answerer, list[list[int]]]


@dataclass(frozen=True)
class Adapters:
    """The decode module as a LoRA adapter at its best rate, beside full fine-tuning and the decode module whose weights
    are all trained; over the seeds that have it at all rates."""

    bits: dict[Answerer, list[list[int]]]  # "full" and "decode", as in the first table
    adapter: list[list[int]]
    rates: list[float]  # what was chosen, by seed
    sweep: dict[float, float]  # validation accuracy by rate, mean over these seeds


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
    same_time: SameTime | None  # None: not every seed has the longer training
    more_passes: MorePasses | None  # as many for both; None: no seed has those of both systems
    as_long: MorePasses | None  # for the decode module as many as the time of full fine-tuning's allows
    from_full: FromFull | None
    adapters: Adapters | None

    def pair(self, one: Answerer, other: Answerer) -> tuple[Bits, Bits]:
        return self.bits[one], self.bits[other]


def family_result(name: str, records: list[Record]) -> FamilyResult | None:
    records = [record for record in records if record.cell.family == name]
    groups = at_common_rates(records)
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
    longest = [record for record in records if (record.cell.rate, record.cell.passes) in FAMILIES[name].longest]
    longer = [record for record in records if record.cell.passes > 1 and record not in longest]
    of_full = [record for record in longer if record.cell.system == "full"]
    return FamilyResult(
        name,
        seeds,
        bits,
        {system: [chosen[seed][system].cell.rate or 0.0 for seed in seeds] for system in systems},
        _sweep(tuned, len(seeds)),
        {system: _mean_seconds([record for record in tuned if record.cell.system == system]) for system in systems},
        _same_time(tuned, longer, seeds),
        _more_passes(tuned, longer, seeds),
        _more_passes(tuned, [*of_full, *longest], seeds),
        _from_full(records, seeds),
        _adapters(records, seeds, bits),
    )


def _same_time(tuned: list[Record], longer: list[Record], seeds: list[int]) -> SameTime | None:
    chosen: list[Record] = []
    used: list[Record] = []
    for seed in seeds:
        decode, more = _of(tuned, seed, "decode"), _of(longer, seed, "decode")
        top = _best_of_both(decode, more)
        if top is None:
            return None
        chosen.append(top)
        used += [*_of(tuned, seed, "full"), *decode, *more]
    bits = [record.right("test", "decode") for record in chosen]
    return SameTime(bits, [record.cell.passes for record in chosen], _time(used))


def _more_passes(tuned: list[Record], longer: list[Record], seeds: list[int]) -> MorePasses | None:
    chosen: dict[System, list[Record]] = {"full": [], "decode": []}
    used: list[Record] = []
    for seed in seeds:
        found = {system: _best_of_both(_of(tuned, seed, system), _of(longer, seed, system)) for system in chosen}
        for system, top in found.items():
            if top and all(found.values()):
                chosen[system].append(top)
                used += [*_of(tuned, seed, system), *_of(longer, seed, system)]
    if not chosen["full"]:
        return None
    bits = {
        key: [record.right("test", key) for record in chosen[system]]
        for key, system in _TRAINED.items()
        if system != "base"
    }
    passes = {system: [record.cell.passes for record in tops] for system, tops in chosen.items()}
    return MorePasses(bits, passes, _time(used))


def _time(records: list[Record]) -> float:
    """`MorePasses.time`, of all trainings of both systems."""
    by_cell = {record.cell: _seconds(record) for record in records}
    steps = [
        seconds / by_cell[replace(cell, system="decode")]
        for cell, seconds in by_cell.items()
        if cell.system == "full" and cell.in_sweep
    ]
    passes = {system: sum(cell.passes for cell in by_cell if cell.system == system) for system in ("full", "decode")}
    return passes["decode"] / median(steps) / passes["full"]


def _from_full(records: list[Record], seeds: list[int]) -> FromFull | None:
    by_cell = {record.cell: record for record in records if "test" in record.scores}
    pairs = [
        (by_cell[cell.start], record)
        for cell, record in sorted(by_cell.items(), key=lambda each: each[0].seed)
        if cell.start in by_cell and cell.seed in seeds
    ]
    if not pairs:
        return None
    _check_comparable(pairs[0][0].cell.family, [record for pair in pairs for record in pair])
    bits: dict[Answerer, list[list[int]]] = {
        key: [full.right("test", key) for full, _ in pairs] for key in ("full", "naive")
    }
    return FromFull(bits | {"decode": [decode.right("test", "decode") for _, decode in pairs]})


def _adapters(records: list[Record], seeds: list[int], bits: dict[Answerer, list[list[int]]]) -> Adapters | None:
    chosen: dict[int, Record] = {}
    used: list[Record] = []
    for number, seed in enumerate(seeds):
        group = [record for record in records if record.cell.rank and record.cell.seed == seed]
        tried = {record.cell.rate for record in group if "validation" in record.scores}
        if group and tried.issuperset(FAMILIES[group[0].cell.family].adapters) and "test" in best(group).scores:
            chosen[number] = best(group)
            used += group
    if not chosen:
        return None
    _check_comparable(used[0].cell.family, used)
    rates = sorted({record.cell.rate or 0.0 for record in used})
    return Adapters(
        {key: [bits[key][number] for number in chosen] for key in ("full", "decode")},
        [record.right("test", "decode") for record in chosen.values()],
        [record.cell.rate or 0.0 for record in chosen.values()],
        {rate: mean([r.right("validation", "decode") for r in used if r.cell.rate == rate]) for rate in rates},
    )


def _of(records: list[Record], seed: int, system: System) -> list[Record]:
    return [record for record in records if record.cell.seed == seed and record.cell.system == system]


def _best_of_both(shorter: list[Record], longer: list[Record]) -> Record | None:
    """None where there is no longer training yet, or a score is missing."""
    if not longer or any("validation" not in record.scores for record in longer):
        return None
    _check_comparable(longer[0].cell.family, [*shorter, *longer])
    top = best([*shorter, *longer])  # of equal ones at one rate the first: one pass
    return top if "test" in top.scores else None


def _seconds(record: Record) -> float:
    return float(record.training["seconds"])


def at_common_rates(records: list[Record]) -> dict[tuple[int, System], list[Record]]:
    """By seed and system: base, and both systems at the rates at which they can be compared."""
    groups: dict[tuple[int, System], list[Record]] = defaultdict(list)
    records = [record for record in records if record.cell.in_sweep]
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
    return round(sum(map(_seconds, records)) / len(records), 1)
