"""The cells of the grid and their records: one small JSON file each, so that a run goes on where another stopped."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from experiments.accuracy.items import Data, Family, Size
from prefillshare.errors import UserError
from prefillshare.files import write_whole

System = Literal["base", "full", "decode"]  # what is trained: nothing, all weights on own KV, all weights on base KV
# What is scored: naive sharing is full fine-tuning's weights on the base's KV.
Answerer = Literal["base", "full", "naive", "decode"]
_TUNED: tuple[System, System] = ("full", "decode")
ANSWERERS: dict[System, tuple[Answerer, ...]] = {"base": ("base",), "full": ("full", "naive"), "decode": ("decode",)}

BATCH_SIZE = 8
WARMUP_RATIO = 0.1
RANK = 16  # of adapters; their alpha is twice that
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "accuracy"


@dataclass(frozen=True)
class Cell:
    """One training, or for `base` none. `rate` is its learning rate, `passes` how often it goes through the rows.

    `after`: the decode module starts from full fine-tuning at this rate, for so many passes. `rank`: it is a LoRA
    adapter of this rank; 0: all its weights are trained.
    """

    family: str
    seed: int
    system: System
    rate: float | None = None
    passes: int = 1
    after: int = 0
    rank: int = 0

    @property
    def in_sweep(self) -> bool:
        """Whether it is one of the trainings that both systems have at every rate."""
        return self.passes == 1 and not self.after and not self.rank

    @property
    def start(self) -> "Cell | None":
        """The training whose checkpoint it starts from; None: from the base."""
        return Cell(self.family, self.seed, "full", self.rate, self.after) if self.after else None

    def __str__(self) -> str:
        rate = "" if self.rate is None else f" {self.rate:g}"
        more = f" x{self.passes}" if self.passes > 1 else ""
        more += f" rank {self.rank}" if self.rank else ""
        return f"{self.family} seed {self.seed} {self.system}{rate}{more}" + (
            f" after x{self.after}" * (self.after > 0)
        )

    @property
    def name(self) -> str:
        return str(self).replace(" seed ", "-s").replace(" rank ", "-r").replace(" ", "-")

    @property
    def folder(self) -> str:
        """Names its checkpoint's folder, and the module in it."""
        return self.name.replace(".", "_")


@dataclass
class Record:
    """What is kept of a cell. `scores[part][answerer]` has "right", one 0 or 1 an item, and "seconds"."""

    cell: Cell
    recipe: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[Answerer, dict[str, Any]]] = field(default_factory=dict)

    @property
    def dtype(self) -> str | None:
        """Of the computation; None before there is one."""
        return self.environment.get("dtype")

    def right(self, part: str, answerer: Answerer) -> list[int]:
        return [int(bit) for bit in self.scores[part][answerer]["right"]]

    def accuracy(self, part: str, answerer: Answerer) -> float:
        bits = self.right(part, answerer)
        return sum(bits) / len(bits)


def grid(
    families: list[Family], seeds: list[int], rates: tuple[float, ...] | None, *, adapters_only: bool = False
) -> Iterator[list[list[Cell]]]:
    """For each seed and family eight groups of cells whose best is scored on the test items: the base, all rates of
    full fine-tuning, all rates of the decode module, its longer training, full fine-tuning's for as many passes, one
    pass of the decode module that starts from that, its longest training, and the decode module as an adapter (the last
    five empty if their rate is left out). With `adapters_only` all but the last are empty.

    Seed by seed, so that a run that stops early has every family.
    """
    for seed, family in product(seeds, families):
        tried = rates or family.rates
        full, decode = ([Cell(family.name, seed, system, rate) for rate in tried] for system in _TUNED)
        longer, longest = (
            [Cell(family.name, seed, "decode", rate, passes) for rate, passes in trainings if rate in tried]
            for trainings in (family.longer, family.longest)
        )
        as_often = [replace(cell, system="full") for cell in longer]
        from_full = [replace(cell, system="decode", passes=1, after=cell.passes) for cell in as_often]
        adapters = [
            Cell(family.name, seed, "decode", rate, rank=RANK) for rate in family.adapters if not rates or rate in rates
        ]
        others = [[Cell(family.name, seed, "base")], full, decode, longer, as_often, from_full, longest]
        yield [*([] if adapters_only else group for group in others), adapters]


def draw(family: Family, seed: int, items: int) -> Data:
    """The family's rows and items for a seed. `items` are test items; there are half as many for validation."""
    return family.build(seed, Size(family.steps * BATCH_SIZE, items // 2, items))


def recipe(family: Family, data: Data, base: str) -> dict[str, Any]:
    """Everything beside the cell that a result depends on. Equal recipes give comparable results."""
    return {
        "base": base,
        "data": data.digest(),
        "items": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "steps": family.steps,
        "batch_size": BATCH_SIZE,
        "lr_scheduler_type": "linear",
        "warmup_ratio": WARMUP_RATIO,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_new_tokens": family.max_new_tokens,
    }


def load(cell: Cell, wanted: dict[str, Any], folder: Path) -> Record:
    """The cell's record, empty if there is none.

    Raises:
        UserError: it was made by another recipe, whose results a run would otherwise overwrite or mix with its own.
    """
    file = folder / f"{cell.name}.json"
    if not file.is_file():
        return Record(cell, wanted)
    record = read(file)
    differing = sorted(key for key in wanted.keys() | record.recipe.keys() if wanted.get(key) != record.recipe.get(key))
    if differing:
        raise UserError(
            f"{file}: made by another recipe ({', '.join(differing)} differ); remove it, or write to another folder "
            "with --results"
        )
    return record


def read(file: Path) -> Record:
    content = json.loads(file.read_text())
    return Record(**{**content, "cell": Cell(**content["cell"])})


def save(record: Record, folder: Path) -> None:
    """The file appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{record.cell.name}.json", json.dumps(asdict(record), indent=1) + "\n")


def comparable(full: Record, decode: Record) -> bool:
    """Whether both systems have been trained at this rate and scored on the validation items, in one dtype."""
    return full.dtype == decode.dtype and all("validation" in record.scores for record in (full, decode))


def best(records: list[Record]) -> Record:
    """The record whose system did best on the validation items; the lower rate where two are equal."""
    return max(
        records, key=lambda record: (record.accuracy("validation", record.cell.system), -(record.cell.rate or 0))
    )
