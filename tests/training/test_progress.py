import io
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from prefillshare.training import progress as room


class FakeTrainer:
    """Two steps with an evaluation after the first, or an interruption there."""

    def __init__(self, interrupted: bool = False) -> None:
        self.interrupted = interrupted
        self.callbacks: list[TrainerCallback] = []

    def add_callback(self, callback: TrainerCallback) -> None:
        self.callbacks.append(callback)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        state = SimpleNamespace(max_steps=2, global_step=0)
        for callback in self.callbacks:
            callback.on_train_begin(None, state, None)
        for loss in (1.5, 0.25):
            state.global_step += 1
            for callback in self.callbacks:
                callback.on_step_end(None, state, None)
            self.log(state, loss=loss, grad_norm=1.23456, learning_rate=1e-05, num_tokens=2048000.0, epoch=0.5)
            if self.interrupted:
                raise KeyboardInterrupt
            if state.global_step == 1:
                self.log(state, eval_loss=0.75, eval_mean_token_accuracy=0.5, eval_samples_per_second=9.0, epoch=0.5)
        self.log(state, train_runtime=3.5, total_flos=1.0, train_loss=0.875)

    def log(self, state: SimpleNamespace, **logs: float) -> None:
        for callback in self.callbacks:
            callback.on_log(None, state, None, logs=logs)


def console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int) -> io.StringIO:
    """Where colours are asked for all the same, as many CI systems do."""
    output = io.StringIO()
    output.isatty = lambda: terminal  # type: ignore[method-assign]
    original = room.Console
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(room, "Console", lambda **_: original(file=output, width=width))
    return output


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return console(monkeypatch, terminal=True, width=120)


@pytest.fixture
def job_log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return console(monkeypatch, terminal=False, width=20)


def test_the_bar_counts_steps_and_shows_the_loss(terminal: io.StringIO) -> None:
    room.with_progress(FakeTrainer(), "training sql")
    last = terminal.getvalue().rsplit("training sql", 1)[1]
    assert "2/2" in last
    assert "loss 0.250" in last


def test_what_is_measured_on_held_out_rows_stays_above_the_bar(terminal: io.StringIO) -> None:
    room.with_progress(FakeTrainer(), "training sql")
    assert terminal.getvalue().count("step 1 of 2, eval_loss 0.75, eval_mean_token_accuracy 0.5, epoch 0.5\n") == 1
    assert "grad_norm" not in terminal.getvalue()


def test_without_a_terminal_every_entry_of_the_log_is_a_line(job_log: io.StringIO) -> None:
    """However narrow the console says that it is."""
    room.with_progress(FakeTrainer(), "training sql")
    assert job_log.getvalue().splitlines() == [
        "training sql: step 1 of 2, loss 1.5, grad_norm 1.235, learning_rate 1e-05, num_tokens 2048000, epoch 0.5",
        "training sql: step 1 of 2, eval_loss 0.75, eval_mean_token_accuracy 0.5, epoch 0.5",
        "training sql: step 2 of 2, loss 0.25, grad_norm 1.235, learning_rate 1e-05, num_tokens 2048000, epoch 0.5",
        "training sql: step 2 of 2, train_runtime 3.5, train_loss 0.875",
    ]


def test_an_interruption_gives_the_cursor_back(terminal: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt):
        room.with_progress(FakeTrainer(interrupted=True), "training sql")
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")


@pytest.mark.parametrize("where", ["terminal", "job_log"])
def test_it_can_be_silent(where: str, request: pytest.FixtureRequest) -> None:
    output: io.StringIO = request.getfixturevalue(where)
    room.with_progress(FakeTrainer(), "training sql", shown=False)
    assert output.getvalue() == ""
