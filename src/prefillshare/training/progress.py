"""The bar over a training run's optimiser steps."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def with_progress(
    trainer: Trainer, label: str, *, shown: bool = True, resume_from_checkpoint: str | None = None
) -> None:
    """`trainer.train()` under a bar with the loss behind it. The terminal is restored when it is interrupted."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), disable=not shown) as progress:
        trainer.add_callback(_Bar(progress, progress.add_task(label, total=None, loss="")))
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
