import io
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from prefillshare.training import progress as room


class FakeTrainer:
    """Two steps, or an interruption after the first."""

    def __init__(self, interrupted: bool = False) -> None:
        self.interrupted = interrupted

    def add_callback(self, callback: TrainerCallback) -> None:
        self.callback = callback

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        state = SimpleNamespace(max_steps=2, global_step=0)
        self.callback.on_train_begin(None, state, None)
        for loss in (1.5, 0.25):
            state.global_step += 1
            self.callback.on_step_end(None, state, None)
            self.callback.on_log(None, state, None, logs={"loss": loss})
            if self.interrupted:
                raise KeyboardInterrupt
        self.callback.on_log(None, state, None, logs={"train_runtime": 3.0})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    from rich.console import Console

    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    original = room.Progress
    monkeypatch.setattr(room, "Progress", lambda *columns, **options: original(*columns, console=console, **options))
    return output


def test_the_bar_counts_steps_and_shows_the_loss(terminal: io.StringIO) -> None:
    room.with_progress(FakeTrainer(), "training sql")
    last = terminal.getvalue().rsplit("training sql", 1)[1]
    assert "2/2" in last
    assert "loss 0.250" in last


def test_an_interruption_gives_the_cursor_back(terminal: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt):
        room.with_progress(FakeTrainer(interrupted=True), "training sql")
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")


def test_it_can_be_silent(terminal: io.StringIO) -> None:
    room.with_progress(FakeTrainer(), "training sql", shown=False)
    assert terminal.getvalue() == ""
