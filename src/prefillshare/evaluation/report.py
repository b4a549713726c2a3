"""What an evaluation found: results.json with every answer, results.md with the tables, sweep.png with the curves."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from prefillshare.evaluation.answers import Answer
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.items import Item
from prefillshare.evaluation.statistics import Interval, PairedDifference, paired_difference, wilson
from prefillshare.evaluation.systems import CURVES, SYSTEMS, Measurement
from prefillshare.files import write_whole

_COMPARED = (
    ("decode module", "full fine-tuning"),
    ("decode module", "naive sharing"),
    ("full fine-tuning", "naive sharing"),
)
_FOLDERS = ("model_name_or_path", "module", "full_fine_tuning", "dataset_name")

Rows = list[list[str]]


@dataclass(frozen=True)
class Outcome:
    """One measurement: answers and verdicts in the order of the report's items, and what the answers depend on."""

    measurement: Measurement
    inputs: dict[str, Any]
    answers: list[Answer]
    verdicts: list[bool]

    @property
    def accuracy(self) -> Interval:
        return wilson(sum(self.verdicts), len(self.verdicts))

    @property
    def cut_off(self) -> int:
        return sum(answer.cut_off for answer in self.answers)

    def as_dict(self) -> dict[str, Any]:
        return {
            "right": sum(self.verdicts),
            "items": len(self.verdicts),
            "accuracy": asdict(self.accuracy),
            "cut_off": self.cut_off,
            "seconds": round(sum(answer.seconds for answer in self.answers), 1),
            "inputs": self.inputs,
        }


@dataclass(frozen=True)
class Report:
    """Everything there is to say; `write` puts it into the config's output folder."""

    config: EvaluateConfig
    items: list[Item]
    outcomes: list[Outcome]
    environment: dict[str, Any]

    @property
    def json_file(self) -> Path:
        return self.config.output_dir / "results.json"

    @property
    def markdown_file(self) -> Path:
        return self.config.output_dir / "results.md"

    @property
    def plot_file(self) -> Path | None:
        return self.config.output_dir / "sweep.png" if self.curves else None

    @cached_property
    def systems(self) -> dict[str, Outcome]:
        """By name, in the order of the table: the four, or the endpoint's model."""
        by_measurement = {outcome.measurement: outcome for outcome in self.outcomes}
        if self.config.endpoint is not None:
            return {self.config.endpoint.model: self.outcomes[0]}
        return {name: by_measurement[each] for name, each in SYSTEMS.items() if each in by_measurement}

    @cached_property
    def curves(self) -> dict[str, dict[float, Outcome]]:
        """The sweep: by system, then by share, ascending."""
        by_measurement = {outcome.measurement: outcome for outcome in self.outcomes}
        curves = {
            name: {
                share: by_measurement[Measurement(role, share)]
                for share in sorted(self.config.shares)
                if Measurement(role, share) in by_measurement
            }
            for role, name in CURVES.items()
        }
        return {name: points for name, points in curves.items() if points}

    @cached_property
    def differences(self) -> dict[tuple[str, str], PairedDifference]:
        return {
            (first, second): paired_difference(self.systems[first].verdicts, self.systems[second].verdicts)
            for first, second in _COMPARED
            if first in self.systems and second in self.systems
        }

    def summary(self) -> dict[str, Any]:
        """The figures, without the answers."""
        settings = self.config.model_dump(mode="json", exclude={"output_dir", "overwrite_output_dir", *_FOLDERS})
        folders = {name: getattr(self.config, name) for name in _FOLDERS}
        return {
            "format_version": 1,
            "settings": {**{name: path.resolve().name for name, path in folders.items() if path}, **settings},
            "environment": self.environment,
            "systems": {name: outcome.as_dict() for name, outcome in self.systems.items()},
            "differences": [
                {"first": first, "second": second, **asdict(difference)}
                for (first, second), difference in self.differences.items()
            ],
            "sweep": {
                name: [{"share": share, **outcome.as_dict()} for share, outcome in points.items()]
                for name, points in self.curves.items()
            },
        }

    def as_dict(self) -> dict[str, Any]:
        """The figures, and every answer with its verdict."""
        items = [
            {
                "line": item.line,
                "expected": item.expected,
                "answers": {
                    outcome.measurement.label: {
                        "answer": outcome.answers[n].text,
                        "right": outcome.verdicts[n],
                        "cut_off": outcome.answers[n].cut_off,
                    }
                    for outcome in self.outcomes
                },
            }
            for n, item in enumerate(self.items)
        ]
        return {**self.summary(), "items": items}

    def write(self) -> None:
        self.config.output_dir.mkdir(parents=True, exist_ok=True)
        if self.plot_file is not None:
            from prefillshare.evaluation.plot import plot_sweep

            points = {name: {x: each.accuracy for x, each in curve.items()} for name, curve in self.curves.items()}
            plot_sweep(points, self.plot_file)
        self.markdown_file.write_text(self.as_markdown())
        write_whole(self.json_file, json.dumps(self.as_dict(), indent=2) + "\n")

    def as_markdown(self) -> str:
        config, parts = self.config, []
        parts.append(
            f"{len(self.items)} items of `{config.dataset_name.name}`, scorer `{config.scorer}`, greedy, at most "
            f"{config.max_new_tokens} tokens, {self.outcomes[0].inputs.get('dtype', 'served')}. Intervals are 95 %: "
            "Wilson's for a share, Bonett and Price's for a paired difference; p is McNemar's exact test."
        )
        for rows in self._tables().values():
            head, *body = rows
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]))
        if self.plot_file is not None:
            parts.append(f"![accuracy against the share of base KV]({self.plot_file.name})")
        return "\n\n".join(parts) + "\n"

    def as_table(self) -> Group:
        """For a terminal."""
        tables = []
        for title, rows in self._tables().items():
            table = Table(title=title, title_justify="left")
            for column, name in enumerate(rows[0]):
                table.add_column(name, justify="right" if column else "left")
            for row in rows[1:]:
                table.add_row(*row)
            tables.append(table)
        return Group(*tables)

    def _tables(self) -> dict[str, Rows]:
        tables = {f"accuracy, {len(self.items)} items": self._systems_rows()}
        if self.differences:
            tables["the same items, answered by two"] = self._differences_rows()
        if self.curves:
            tables["accuracy by the share of the prompt's KV that is the base's"] = self._sweep_rows()
        return tables

    def _systems_rows(self) -> Rows:
        rows = [["system", "right", "accuracy", "95 % interval", "cut off"]]
        for name, outcome in self.systems.items():
            interval = outcome.accuracy
            limits = f"{interval.low:.3f} to {interval.high:.3f}"
            rows.append([name, f"{sum(outcome.verdicts)}", f"{interval.estimate:.3f}", limits, f"{outcome.cut_off}"])
        return rows

    def _differences_rows(self) -> Rows:
        rows = [["difference", "points", "95 % interval", "right only in the first, second", "p"]]
        for (first, second), found in self.differences.items():
            points = found.difference
            limits = f"{100 * points.low:+.1f} to {100 * points.high:+.1f}"
            only = f"{found.only_first}, {found.only_second}"
            rows.append([f"{first} - {second}", f"{100 * points.estimate:+.1f}", limits, only, f"{found.p:.3g}"])
        return rows

    def _sweep_rows(self) -> Rows:
        rows = [["share of base KV", *self.curves]]
        for share in sorted(self.config.shares):
            cells = [curve[share].accuracy for curve in self.curves.values()]
            rows.append([f"{share:.0%}", *(f"{x.estimate:.3f} ({x.low:.3f} to {x.high:.3f})" for x in cells)])
        return rows
