"""The first and the last step of a run: what waits for the one, and what there must not be without the other."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefillshare.errors import UserError


def before_first_step(trainer: Trainer, act: Callable[[], None]) -> None:
    """Has every process call `act` once, when model, optimiser and schedule are made and a checkpoint is loaded."""
    trainer.add_callback(_Beginning(act))


def require_last_step(trainer: Trainer) -> None:
    """Makes sure that training ended because it was done.

    Raises:
        UserError: it was stopped, as `enable_jit_checkpoint` does on SIGTERM: train() returns as ever.
    """
    state = trainer.state
    if state.global_step < state.max_steps:
        raise UserError(
            f"training was stopped after step {state.global_step} of {state.max_steps}, so there is no new module; go "
            "on with resume_from_checkpoint=true"
        )


class _Beginning(TrainerCallback):
    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # With `auto_find_batch_size` training begins again, beside the checkpoints that it has written.
        act, self._act = self._act, None
        if act is not None:
            act()
