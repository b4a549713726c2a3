"""A run's output folder: its checkpoints, the record of what they were made of, and in the end the module."""

import os
import shutil
import sys
from pathlib import Path

from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from prefillshare.errors import UserError
from prefillshare.files import write_whole
from prefillshare.module import MANIFEST_NAME
from prefillshare.training.config import TrainConfig
from prefillshare.training.record import RECORD_NAME, START_AGAIN, RunRecord

UNFINISHED = ".unfinished-module"  # where a module is put together
_LOGS = "runs"  # TensorBoard's
# What modules of both kinds are loaded from. Left of another module, some of it could be loaded with the new one.
_LOADED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json")
_OF_RUN = ("checkpoint-", _LOGS, RECORD_NAME)  # what a run leaves beside its module


def check_output(config: TrainConfig, resume_from: Path | None) -> None:
    """Makes sure that a run, which may go on from a checkpoint, may write to its output folder.

    Raises:
        UserError: it is in use, or not a folder, or holds what `overwrite_output_dir` must not remove.
    """
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; name a folder")
    if not folder.is_dir():
        return
    goes_on = is_of_run(resume_from, folder)
    if config.overwrite_output_dir:
        _check_what_is_removed(config, None if goes_on else resume_from)
        return
    if goes_on:
        return
    if (folder / MANIFEST_NAME).exists():
        raise UserError(f"output_dir: {folder} holds a module; name another folder or set overwrite_output_dir=true")
    if get_last_checkpoint(str(folder)) is not None:
        raise UserError(
            f"output_dir: {folder} holds checkpoints of an unfinished run; go on with resume_from_checkpoint=true, or "
            "start again with overwrite_output_dir=true"
        )
    names = sorted(entry.name for entry in folder.iterdir())
    # A run that was stopped before its first checkpoint leaves nothing but these.
    others = [name for name in names if not name.startswith((UNFINISHED, RECORD_NAME)) and name != _LOGS]
    if others:
        way = "start again with overwrite_output_dir=true" if RECORD_NAME in names else "empty this one"
        raise UserError(f"output_dir: {folder} is not empty, it holds {others[0]}; name another folder, or {way}")


def _check_what_is_removed(config: TrainConfig, resume_from: Path | None) -> None:
    """`overwrite_output_dir` is for an earlier module or run: what else the folder holds may be all that there is."""
    folder = config.output_dir.resolve()
    removed = "overwrite_output_dir=true would remove"
    used = {"model_name_or_path": config.model_name_or_path, "dataset_name": config.dataset_name}
    if resume_from is not None:
        used["resume_from_checkpoint"] = resume_from
    if config.start_from is not None:
        used["start_from"] = config.start_from
    for field, path in used.items():
        if path.resolve().is_relative_to(folder):
            raise UserError(f"output_dir: {removed} {field} {path.resolve()} from {folder}; name another folder")
    names = [entry.name for entry in folder.iterdir()]
    foreign = any(not name.startswith((UNFINISHED, *_OF_RUN)) for name in names)
    if foreign and MANIFEST_NAME not in names and RECORD_NAME not in names:
        raise UserError(
            f"output_dir: {folder} is not empty and holds neither a module nor a run that overwrite_output_dir=true "
            "could replace; name another folder, or empty this one"
        )
    for manifest in sorted(folder.rglob(MANIFEST_NAME)):
        if manifest.parent not in (folder, folder / UNFINISHED):
            raise UserError(f"output_dir: {removed} the module {manifest.parent} from {folder}; name another folder")


def checkpoint_to_resume(config: TrainConfig, *, tell: bool = True) -> Path | None:
    """The checkpoint that the run goes on from, as `resume_from_checkpoint` says. None: it starts.

    A checkpoint without the trainer's state was not written to its end: the state is its last file. Those that are
    passed over are named on stderr, with `tell`.

    Raises:
        UserError: there is no such checkpoint, or it was not written to its end, or holds weights alone.
    """
    wanted = config.get("resume_from_checkpoint")
    if not wanted:
        return None
    if wanted == "true":
        steps = [entry.name.removeprefix("checkpoint-") for entry in config.output_dir.glob("checkpoint-*")]
        for step in sorted((step for step in steps if step.isdecimal()), key=int, reverse=True):
            found = config.output_dir / f"checkpoint-{step}"
            if (found / TRAINER_STATE_NAME).is_file():
                return _with_optimizer(found)
            if tell:
                print(f"resume_from_checkpoint: passed over {found}, which was not written to its end", file=sys.stderr)
        raise UserError(
            f"resume_from_checkpoint: {config.output_dir} holds no finished checkpoint; leave the option out to start "
            "(with overwrite_output_dir=true where there are unfinished ones), and set save_steps lower than the run "
            "is long"
        )
    if not Path(wanted).is_dir():
        raise UserError(f"resume_from_checkpoint: {wanted} is not a folder; name a checkpoint-N folder, or true")
    if not (Path(wanted) / TRAINER_STATE_NAME).is_file():
        raise UserError(
            f"resume_from_checkpoint: {wanted} is not a finished checkpoint: it has no {TRAINER_STATE_NAME}; name "
            "another checkpoint-N folder, or true"
        )
    return _with_optimizer(Path(os.path.abspath(wanted)))


def _with_optimizer(checkpoint: Path) -> Path:
    """Transformers goes on from a checkpoint of weights alone without a word, with a new optimiser and warm-up."""
    if not any(checkpoint.glob("optimizer*")) or not (checkpoint / SCHEDULER_NAME).is_file():
        raise UserError(
            f"resume_from_checkpoint: {checkpoint} has no optimiser and schedule to go on with (save_only_model leaves "
            f"them out); {START_AGAIN}, or train on from its weights with start_from"
        )
    return checkpoint


def is_of_run(checkpoint: Path | None, output: Path) -> bool:
    """Whether a checkpoint is one of those in `output`, so that what lies there belongs to the run that goes on."""
    return checkpoint is not None and checkpoint.parent.resolve() == output.resolve()


def start_run(output: Path, record: RunRecord) -> None:
    """Makes `output` ready for the checkpoints of a run that is not one of those there: theirs are removed.

    They go before the record changes, and the record is written whole or not at all: no checkpoint ever lies beside a
    record that is not its own.
    """
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / RECORD_NAME, record.model_dump_json(indent=2) + "\n")


def publish(finished: Path, folder: Path, *, alone: bool) -> None:
    """Moves the module's files up. The manifest goes first and comes last: without it nothing is a module.

    What another module was loaded from is removed. With `alone`, so is all else that lies in the folder, the run's
    checkpoints, their record and logs apart.
    """
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for entry in folder.iterdir():
        goes = not entry.name.startswith(_OF_RUN) if alone else any(map(entry.match, _LOADED))
        if goes and entry != finished:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in sorted(finished.iterdir(), key=lambda entry: entry.name == MANIFEST_NAME):
        if entry.is_dir():
            shutil.rmtree(folder / entry.name, ignore_errors=True)
        os.replace(entry, folder / entry.name)
    finished.rmdir()
