"""What a training run shows on stderr: a bar over its optimiser steps, or lines where that is no terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefillshare.training.columns import bar_columns

_HELD_OUT = "eval_"
_LEFT_OUT = ("total_flos", "_per_second")  # ends of names that say nothing of how well it goes


def with_progress(
    trainer: Trainer, label: str, *, shown: bool = True, resume_from_checkpoint: str | None = None
) -> None:
    """`trainer.train()` under a bar with the loss behind it; what is measured on held-out rows stays above it.

    Where stderr is no terminal (a file, a job's log), every entry of the trainer's log is a line there instead. The
    terminal is restored when training is interrupted.
    """
    console = Console(stderr=True)
    drawn = shown and console.is_terminal and console.file.isatty()  # FORCE_COLOR makes no terminal of a job's log
    with Progress(*bar_columns(), TextColumn("{task.fields[loss]}"), console=console, disable=not drawn) as progress:
        if drawn:
            trainer.add_callback(_Bar(progress, progress.add_task(label, total=None, loss="")))
        elif shown:
            trainer.add_callback(_Lines(console, label))
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)


class _Bar(TrainerCallback):
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            loss = f"loss {kwargs['logs']['loss']:.3f}"
            self._progress.update(self._task, loss=loss)
        if any(name.startswith(_HELD_OUT) for name in kwargs["logs"]):
            _print(self._progress.console, _line(state, kwargs["logs"]))


class _Lines(TrainerCallback):
    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _print(self._console, f"{self._label}: {_line(state, kwargs['logs'])}")


def _line(state: TrainerState, logs: Mapping[str, Any]) -> str:
    """An entry of the log under the names that it has in trainer_state.json."""
    shown = [f"{name} {_number(value)}" for name, value in logs.items() if not name.endswith(_LEFT_OUT)]
    return ", ".join([f"step {state.global_step} of {state.max_steps}", *shown])


def _number(value: Any) -> str:
    """Counts whole, as means of them are floats too, and the rest to four digits."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return str(value)


def _print(console: Console, line: str) -> None:
    # As text, and never folded: a line is one entry whatever the width.
    console.print(line, markup=False, highlight=False, soft_wrap=True)
