"""Which records are published: those of one folder, or of several that belong together."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from prefillshare.bench.costs import FILE
from prefillshare.bench.environment import kind_of_machine
from prefillshare.bench.figures import recorded
from prefillshare.bench.run import MATRIX
from prefillshare.errors import UserError


def replace_records(results: Path, published: Path) -> None:
    """Runs, costs and matrix of one folder in place of what the other has.

    Raises:
        UserError: there are no costs. Nothing has changed then.
    """
    if results.resolve() == published.resolve():
        return
    if not (results / FILE).exists():
        raise UserError(f"{results / FILE} is missing; `prefillshare bench calibrate {results} --base ...` makes it")
    shutil.rmtree(published / "runs", ignore_errors=True)
    copy_runs(results, published)
    for name in (FILE, MATRIX):
        shutil.copy(results / name, published)


def copy_runs(results: Path, folder: Path) -> None:
    """Those that ended, beside what is there."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for file in sorted((results / "runs").glob("*.json")):
        for one in (file, file.with_suffix(".jsonl")):
            shutil.copy(one, folder / "runs")


def check_one_kind(folders: Sequence[Path]) -> None:
    """Raises UserError when runs were made on several kinds of machines."""
    environments = [facts["environment"] for each in folders for facts, _ in recorded(each)]
    for name in kind_of_machine("auto"):
        if len(found := {str(each.get(name)) for each in environments}) > 1:
            raise UserError(f"these runs were made with several kinds of {name}: {', '.join(sorted(found))}")
