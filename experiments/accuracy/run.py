"""The grid, cell by cell. Every finished step is a record on disk; a run goes on where the last one stopped.

For each family and seed: the base is scored; full fine-tuning and the decode module are trained at every learning
rate and scored on the validation items; then each system's best checkpoint is scored on the test items. The longer
trainings of both, and adapters, are scored on both.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.accuracy.answering import score
from experiments.accuracy.cells import (
    ANSWERERS,
    Answerer,
    Cell,
    Record,
    best,
    comparable,
    draw,
    grid,
    load,
    recipe,
    save,
)
from experiments.accuracy.families import FAMILIES
from experiments.accuracy.items import Data
from experiments.accuracy.training import Recipe, is_trained, keep_recipe, train_cell
from experiments.environment import environment
from prefillshare.errors import UserError
from prefillshare.hardware import preferred_dtype
from prefillshare.identity import compute_identity


@dataclass(frozen=True)
class Step:
    """A piece of work that ends in a saved record. `kind` groups steps that take about as long as each other."""

    kind: str
    title: str
    do: Callable[[], None]


@dataclass
class Clock:
    """How long steps of a kind take, measured as they are done."""

    budget_s: float
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def estimate(self, kind: str) -> float:
        """Mean of the kind's steps so far, or of all steps before there is one; 0 before there is any."""
        known = self.seconds.get(kind) or [second for kinds in self.seconds.values() for second in kinds]
        return sum(known) / len(known) if known else 0.0

    def allows(self, kind: str) -> bool:
        return time.monotonic() - self.started + self.estimate(kind) <= self.budget_s

    def run(self, step: Step) -> None:
        started = time.monotonic()
        step.do()
        self.seconds.setdefault(step.kind, []).append(time.monotonic() - started)


@dataclass(frozen=True)
class Grid:
    """What to run, and where. `checkpoints` is scratch: what is missing there is trained again when it is needed."""

    families: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...] | None  # None: each family's own
    items: int
    base: Path
    results: Path
    checkpoints: Path
    adapters_only: bool = False

    def groups(self) -> list["Group"]:
        identity = compute_identity(self.base).digest
        groups = []
        families = [FAMILIES[name] for name in self.families]
        for cells in grid(families, list(self.seeds), self.rates, adapters_only=self.adapters_only):
            first = next(chain.from_iterable(cells), None)
            if first is None:
                continue
            family = FAMILIES[first.family]
            data = draw(family, first.seed, self.items)
            wanted = recipe(family, data, identity)
            of_base, full, decode, longer, as_often, *further = (
                Group(self, data, [load(cell, wanted, self.results) for cell in group]) for group in cells
            )
            for of_full, of_decode in ((full, decode), (as_often, longer)):
                for number, pair in enumerate(zip(of_full.records, of_decode.records, strict=True)):
                    of_full.records[number], of_decode.records[number] = _in_one_dtype(*pair)
            every = (of_base, full, decode, longer, as_often, *further)
            groups += [group for group in every if group.records]
        return groups


def _in_one_dtype(full: Record, decode: Record) -> tuple[Record, Record]:
    """Both systems' records at one rate, for as many passes. Unless both are done in the same dtype, what is of another
    dtype than this machine's is begun again."""
    if comparable(full, decode):
        return full, decode
    return _of_this_machine(full), _of_this_machine(decode)


def _of_this_machine(record: Record) -> Record:
    return record if record.dtype == preferred_dtype() else Record(record.cell, record.recipe)


@dataclass
class Group:
    """Trainings of one family, seed and system that are compared. Only the best checkpoint so far is kept."""

    grid: Grid
    data: Data
    records: list[Record]

    def remaining(self) -> list[Step]:
        """What is still to do, in order. The last one's record depends on the others."""
        cells = [record.cell for record in self.records]
        if cells[0].system == "base":
            return (
                [] if "test" in self.records[0].scores else [Step(f"{cells[0].family} base", str(cells[0]), self._base)]
            )
        steps = [
            Step(f"{record.cell.family} {record.cell.system}", str(record.cell), partial(self._tune, record))
            for record in self.records
            if "validation" not in record.scores
        ]
        if steps or ("test" not in best(self.records).scores and not self.left_to_others()):
            title = f"{replace(cells[0], rate=None)}, test items"
            steps.append(Step(f"{cells[0].family} {cells[0].system} test", title, self._test))
        return steps

    def left_to_others(self) -> Record | None:
        """The best record, if its test items are left to machines of its dtype, which is not this one's, since its
        checkpoint is gone."""
        if any("validation" not in record.scores for record in self.records):  # the best is not known, or there is none
            return None
        chosen = best(self.records)
        done = "test" in chosen.scores or chosen.dtype == preferred_dtype() or self._has_checkpoint(chosen)
        return None if done else chosen

    def _base(self) -> None:
        self._score(self.records[0], "test")

    def _tune(self, record: Record) -> None:
        self._train(record)
        self._score(record, "validation")
        scored = [record for record in self.records if "validation" in record.scores]
        for other in scored:
            if other is not best(scored):
                shutil.rmtree(self._checkpoint(other.cell), ignore_errors=True)

    def _test(self) -> None:
        chosen = best(self.records)
        # It was the best before more rates were tried, and is; or only another machine can train it as it was.
        if "test" in chosen.scores or self.left_to_others():
            return
        if not self._has_checkpoint(chosen):
            self._train(chosen)
        self._score(chosen, "test")

    def _train(self, record: Record) -> None:
        start_from = self._start(record) if record.cell.start else None
        record.training = self._write_checkpoint(record.cell, record.recipe, start_from)
        record.environment = environment()

    def _write_checkpoint(self, cell: Cell, recipe: Recipe, start_from: Path | None = None) -> dict[str, Any]:
        folder = self._checkpoint(cell)
        found = train_cell(cell, self.data.train, self.grid.base, folder, start_from)
        keep_recipe(folder, recipe)
        return found

    def _start(self, record: Record) -> Path:
        """The checkpoint that the cell starts from, trained again if it is gone.

        Raises:
            UserError: it was made in a dtype that is not this machine's, so that another one would come of it.
        """
        start = record.cell.start
        assert start is not None
        folder = self._checkpoint(start)
        if not is_trained(folder, record.recipe):
            dtype = load(start, record.recipe, self.grid.results).dtype
            if dtype not in (None, preferred_dtype()):
                raise UserError(
                    f"{record.cell} starts from {start}, whose checkpoint {folder} is gone and was trained in {dtype}; "
                    "run it on a machine that computes in it, or remove that record"
                )
            self._write_checkpoint(start, record.recipe)
        return folder

    def _score(self, record: Record, part: str) -> None:
        family, base = FAMILIES[record.cell.family], self.grid.base
        own = self._checkpoint(record.cell)
        weights: dict[Answerer, tuple[Path, Path]] = {
            "base": (base, base),
            "full": (own, own),
            "naive": (base, own),
            "decode": (base, own),
        }
        record.environment = record.environment or environment()
        for answerer in ANSWERERS[record.cell.system]:
            record.scores.setdefault(part, {})[answerer] = score(
                f"{record.cell}: {answerer}, {part} items",
                family,
                getattr(self.data, part),
                *weights[answerer],
                self.grid.checkpoints / "answers" / f"{record.cell.name}-{answerer}-{part}.txt",
            )
        save(record, self.grid.results)

    def _has_checkpoint(self, record: Record) -> bool:
        return is_trained(self._checkpoint(record.cell), record.recipe)

    def _checkpoint(self, cell: Cell) -> Path:
        return self.grid.checkpoints / cell.folder


def run(what: Grid, *, budget_s: float, console: Console) -> bool:
    """Whether all is done that can be done here. Stops before a step that would end after the budget."""
    groups = what.groups()
    clock = Clock(budget_s)
    total = sum(len(group.remaining()) for group in groups)
    done = 0
    console.print(f"{total} steps to do" if total else "nothing is left to do here")
    for number, group in enumerate(groups):
        for step in group.remaining():
            if not clock.allows(step.kind):
                console.print(f"time is up; {total - done} steps are left, the same command goes on with them")
                return False
            later = [other for rest in groups[number:] for other in rest.remaining()]
            left_s = sum(clock.estimate(other.kind) for other in later)
            time_left = f", about {left_s / 60:.0f} min left" if done else ""
            console.print(f"[{done + 1}/{total}] {step.title}{time_left}", highlight=False)
            clock.run(step)
            done += 1
    for chosen in (record for group in groups if (record := group.left_to_others())):
        console.print(
            f"{chosen.cell}: the best so far, trained in {chosen.dtype}; its test items are left to a machine that "
            f"computes in it (or remove both systems' records at this rate, to train both in {preferred_dtype()})",
            highlight=False,
        )
    return True
