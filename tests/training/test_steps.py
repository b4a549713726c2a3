from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from prefillshare.errors import UserError
from prefillshare.training.steps import before_first_step, require_last_step


def test_what_waits_for_the_first_step_is_done_once() -> None:
    """`auto_find_batch_size` begins training again, and must not remove the checkpoints that it has written."""
    callbacks, done = [], []
    before_first_step(SimpleNamespace(add_callback=callbacks.append), lambda: done.append(1))
    assert not done
    for _ in range(2):
        callbacks[0].on_train_begin(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())
    assert done == [1]


@pytest.mark.parametrize("step", [3, 4])
def test_training_that_was_done_ended(step: int) -> None:
    """A checkpoint that a run went on from may have more steps than the run is long now."""
    require_last_step(SimpleNamespace(state=TrainerState(global_step=step, max_steps=3)))
    with pytest.raises(UserError, match=f"stopped after step {step} of 5"):
        require_last_step(SimpleNamespace(state=TrainerState(global_step=step, max_steps=5)))
