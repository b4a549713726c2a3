"""One evaluation, from a checked config to the report on disk."""

import hashlib
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress, TextColumn

from prefillshare.errors import UserError
from prefillshare.evaluation.answers import Answer, AnswerFile
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.items import BadField, Item, read_items
from prefillshare.evaluation.report import Outcome, Report
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.evaluation.systems import Measurement, plan
from prefillshare.extras import missing
from prefillshare.training.columns import bar_columns

_PACKAGES = ("torch", "transformers", "peft", "openai", "bfcl-eval")


class Source(Protocol):
    """What answers items: local weights, or an endpoint."""

    def depends_on(self, measurement: Measurement) -> dict[str, Any]: ...

    def answers(self, measurement: Measurement, items: list[Item]) -> Iterator[Answer]: ...


def evaluate(config: EvaluateConfig, *, show_progress: bool = True) -> Report:
    """Answers and scores every item with every system, and writes the report into `config.output_dir`.

    Everything that can be wrong with config, data and folders is found before a model is loaded. Answers are kept as
    they come: after an interruption the same call answers only what is missing.

    Raises:
        UserError: rows, folders or an endpoint that cannot be used.
    """
    _require_packages(config)
    items = read_selected(config)
    _make_folders(config.output_dir)
    source = _source(config, items, tell=show_progress)
    data = "sha256:" + hashlib.sha256(config.dataset_name.read_bytes()).hexdigest()
    folder = config.output_dir / "answers"
    if config.overwrite_output_dir:
        shutil.rmtree(folder, ignore_errors=True)
    outcomes = []
    console = Console(stderr=True)  # standard output is for the figures
    columns = (*bar_columns(), TextColumn("{task.fields[right]}"))
    with Progress(*columns, console=console, disable=not show_progress) as progress:
        measurements = plan(config)
        for number, measurement in enumerate(measurements, start=1):
            label = f"{measurement.label} ({number} of {len(measurements)})"
            bar = _Bar(progress, label, len(items))
            inputs = {"data": data, "max_new_tokens": config.max_new_tokens, **source.depends_on(measurement)}
            with AnswerFile(folder / measurement.file_name, inputs) as kept:
                verdicts = _measure(config.scorer, source, measurement, items, kept, bar)
            answers = [kept.known[item.line] for item in items]
            outcomes.append(Outcome(measurement, inputs, answers, [verdicts[item.line] for item in items]))
    report = Report(config, items, outcomes, _environment())
    report.write()
    return report


def read_selected(config: EvaluateConfig) -> list[Item]:
    """The items that the config asks for, in the file's order, each of them fit for the scorer."""
    scorer = SCORERS[config.scorer]
    items = read_items(config.dataset_name, needs_expected=scorer.needs_expected, expects_calls=scorer.expects_calls)
    if config.items is not None:
        if config.items > len(items):
            raise UserError(f"items: {config.items} is more than the {len(items)} rows of {config.dataset_name}")
        # Neighbours often share the start of their prompts, which is then prefilled once: keep the file's order.
        items = sorted(random.Random(config.seed).sample(items, config.items), key=lambda item: item.line)
    for item in items:
        try:
            scorer.check(item)
        except BadField as problem:
            raise UserError(f"{config.dataset_name}, line {item.line}, {problem}") from None
    return items


def _measure(
    scorer: str, source: Source, measurement: Measurement, items: list[Item], kept: AnswerFile, bar: "_Bar"
) -> dict[int, bool]:
    """Verdicts by the items' lines. Answers that are missing in `kept` are asked for and added."""
    by_line = {item.line: item for item in items}
    verdicts: dict[int, bool] = {}

    def take(answer: Answer) -> None:
        verdicts[answer.line] = SCORERS[scorer](answer.text, by_line[answer.line])
        bar.show(verdicts)

    for item in items:
        if item.line in kept.known:
            take(kept.known[item.line])
    missing = [item for item in items if item.line not in kept.known]
    for answer in source.answers(measurement, missing) if missing else ():
        kept.append(answer)
        take(answer)
    return verdicts


class _Bar:
    """A measurement's bar: items scored, time left, and the share that was right so far."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress, self._task = progress, progress.add_task(label, total=total, right="")

    def show(self, verdicts: dict[int, bool]) -> None:
        right = f"{sum(verdicts.values()) / len(verdicts):.0%} right"
        self._progress.update(self._task, completed=len(verdicts), right=right)


def _source(config: EvaluateConfig, items: list[Item], *, tell: bool) -> Source:
    # Imported here: one needs torch, the other the client, and neither needs what the other does.
    if config.endpoint is not None:
        from prefillshare.evaluation.endpoint import EndpointAnswers

        return EndpointAnswers(config.endpoint, config.max_new_tokens)
    from prefillshare.evaluation.local import LocalAnswers

    return LocalAnswers(config, items, tell=tell)


def _require_packages(config: EvaluateConfig) -> None:
    for field, wanted, package in (("shares", config.shares, "matplotlib"), ("endpoint", config.endpoint, "openai")):
        if wanted and (why := missing(package, "evaluate")):
            raise UserError(f"{field}: {why}")


def _make_folders(output: Path) -> None:
    """Makes sure, before minutes are spent on prompts and weights, that answers and the report can be kept."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output_dir: {output} is a file; name a folder")
    for folder in (output, output / "answers"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # asks the file system itself: a mode says little of a mount
                pass
        except OSError as error:
            raise UserError(f"output_dir: cannot write in {folder}: {error.strerror}; name another folder") from None


def _environment() -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(), **packages}
