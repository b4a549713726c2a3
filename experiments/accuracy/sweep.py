"""Accuracy against the share of the prompt's KV that is the base's: `prefillshare evaluate` on a family's test items.

The checkpoints are those that the table scores, each system's best on the validation items; one that is gone is trained
again. A family's sweep is one JSON file, from which the section of docs/accuracy.md is made.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.accuracy.cells import Record, best, draw, grid, load, recipe
from experiments.accuracy.families import FAMILIES
from experiments.accuracy.items import Data, Item
from experiments.accuracy.results import at_common_rates
from experiments.accuracy.training import is_trained, keep_recipe, train_cell
from experiments.section import write_section
from prefillshare.errors import UserError
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.run import evaluate
from prefillshare.files import write_whole
from prefillshare.hardware import preferred_dtype
from prefillshare.identity import compute_identity

START = "<!-- table: python -m experiments.accuracy sweep -->"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_BATCH = 25


@dataclass(frozen=True)
class Sweep:
    """What to sweep, and where. `items` as it was for the records in `results`."""

    family: str
    seed: int
    items: int
    base: Path
    results: Path
    checkpoints: Path
    docs: Path

    @property
    def name(self) -> str:
        return f"{self.family}-s{self.seed}"

    def run(self) -> str:
        """Writes docs/results/accuracy-sweep/NAME.json, its plot, and the section of all sweeps in docs/accuracy.md.

        Raises:
            UserError: the family has no rate with both systems' validation scores for this seed, or a checkpoint is
                gone and was of another dtype than this machine's.
        """
        family = FAMILIES[self.family]
        data = draw(family, self.seed, self.items)
        full, decode = (self._checkpoint(record, data) for record in self._chosen(data))
        folder = self.checkpoints / f"sweep-{self.name}"
        folder.mkdir(parents=True, exist_ok=True)
        items = folder / "items.jsonl"
        items.write_text("".join(json.dumps(_row(item)) + "\n" for item in data.test))
        config = EvaluateConfig(
            model_name_or_path=self.base,
            module=decode,
            full_fine_tuning=full,
            dataset_name=items,
            scorer=family.scorer,
            max_new_tokens=family.max_new_tokens,
            shares=SHARES,
            dtype="auto",
            batch_size=_BATCH,
            output_dir=folder,
        )
        report = evaluate(config)
        assert report.plot_file is not None
        shutil.copyfile(report.plot_file, self.docs / _plot(self.name))
        published = self.docs / "results" / "accuracy-sweep"
        published.mkdir(parents=True, exist_ok=True)
        write_whole(published / f"{self.name}.json", json.dumps(report.summary(), indent=1) + "\n")
        return write_sweeps(self.docs)

    def _chosen(self, data: Data) -> tuple[Record, Record]:
        family = FAMILIES[self.family]
        wanted = recipe(family, data, compute_identity(self.base).digest)
        ((_, full, decode, *_),) = grid([family], [self.seed], None)
        groups = at_common_rates([load(cell, wanted, self.results) for cell in (*full, *decode)])
        if not groups:
            raise UserError(
                f"{self.results}: no rate of {self.family}, seed {self.seed}, has both systems; "
                f"run `python -m experiments.accuracy run --families {self.family} --seeds {self.seed}`"
            )
        return best(groups[self.seed, "full"]), best(groups[self.seed, "decode"])

    def _checkpoint(self, record: Record, data: Data) -> Path:
        folder = self.checkpoints / record.cell.folder
        if not is_trained(folder, record.recipe):
            if record.dtype != preferred_dtype():
                raise UserError(
                    f"{folder} is gone and was trained in {record.dtype}; this machine would train it in "
                    f"{preferred_dtype()}: sweep another seed or family, or on a machine like the first"
                )
            train_cell(record.cell, data.train, self.base, folder)
            keep_recipe(folder, record.recipe)
        return folder


def write_sweeps(docs: Path) -> str:
    """The section of docs/accuracy.md, from the files of all sweeps. Raises UserError: the page has no place for it."""
    files = sorted((docs / "results" / "accuracy-sweep").glob("*.json"))
    text = "\n\n".join(_section(file.stem, json.loads(file.read_text())) for file in files)
    write_section(docs / "accuracy.md", START, text)
    return text


def _section(name: str, summary: dict[str, Any]) -> str:
    curves: dict[str, list[dict[str, Any]]] = summary["sweep"]
    family, _, seed = name.rpartition("-s")
    first = next(iter(curves.values()))[0]
    head = f"| {family}, seed {seed}, {first['items']} items, {first['inputs']['dtype']}: share of base KV | "
    lines = [head + " | ".join(curves) + " |", "|---" * (1 + len(curves)) + "|"]
    for points in zip(*curves.values(), strict=True):
        cells = " | ".join(_percent(point["accuracy"]) for point in points)
        lines.append(f"| {points[0]['share']:.0%} | {cells} |")
    return "\n".join([*lines, "", f"![accuracy of {family} against the share of base KV]({_plot(name)})"])


def _percent(accuracy: dict[str, float]) -> str:
    return f"{100 * accuracy['estimate']:.1f} ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})"


def _plot(name: str) -> str:
    return f"accuracy-sweep-{name}.png"


def _row(item: Item) -> dict[str, Any]:
    tools = {"tools": item.tools} if item.tools else {}
    return {"prompt": item.prompt, "expected": item.expected, **tools, **item.fields}
