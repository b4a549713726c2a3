"""A command's run: the base, what work costs here, the matrices and their reports."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.demo.prepare_base import prepare_base
from experiments.bench.places import ROOT
from prefillshare.bench.calibrate import calibrate
from prefillshare.bench.costs import FILE
from prefillshare.bench.figures import Slo
from prefillshare.bench.matrix import SHORT, Matrix
from prefillshare.bench.report import write_report
from prefillshare.bench.run import run


def measure(matrices: Sequence[Matrix], output: Path, longest_prompt: int | None) -> int:
    """Returns the exit code, as `prefillshare bench run` does. Costs are those of all matrices' systems together, since
    their runs are compared.

    Args:
        matrices: one, or two whose systems have no room beside each other; the runs of the second go to `output`-more.
        longest_prompt: as in `costs.Measurement`.
    """
    console = Console(stderr=True)
    base = prepare_base(ROOT / "artifacts" / "base")
    folders = (output, output.with_name(f"{output.name}-more"))[: len(matrices)]
    if not (output / FILE).exists():
        systems = tuple(dict.fromkeys(system for matrix in matrices for system in matrix.systems))
        whole = matrices[0].model_copy(update={"systems": systems})
        # Nobody simulates the short matrix, which has to end within 15 minutes.
        code = calibrate(whole, base, output, console, longest_prompt=longest_prompt, beside=whole != SHORT)
        if code:
            return code
    for matrix, folder in zip(matrices, folders, strict=True):
        code = run(matrix, base, folder, console)
        if code:
            return code
        if folder != output:
            shutil.copy(output / FILE, folder)
        print("written: " + ", ".join(map(str, write_report(folder, Slo()))))
    return 0
