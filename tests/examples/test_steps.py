import io
from pathlib import Path

import pytest
from rich.console import Console

from examples.demo import steps
from prefillshare.errors import UserError
from tests.conftest import write_checkpoint
from tests.deployment.test_checks import write_module

RECIPE = """\
model_name_or_path: base
dataset_name: data/sql.jsonl
output_dir: modules/sql
max_steps: 3
"""


class Workshop:
    """A folder with a base and a recipe, in which training is replaced by writing a module."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.trained = 0
        write_checkpoint(folder / "base")
        (folder / "sql.yaml").write_text(RECIPE)
        (folder / "modules").mkdir()
        monkeypatch.setattr(steps, "HERE", folder)
        monkeypatch.setattr(steps, "_run", self._train)

    async def _train(self, step: str, command: list[str], console: Console) -> None:
        self.trained += 1
        assert command[-1] == "overwrite_output_dir=true"
        if not (self.folder / "modules" / "sql").exists():
            write_module(self.folder / "modules" / "sql", self.folder / "base")

    async def make(self) -> int:
        await steps.make_module("sql", Console(file=io.StringIO()))
        return self.trained


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


async def test_a_module_is_trained_once(workshop: Workshop) -> None:
    assert await workshop.make() == 1
    assert await workshop.make() == 1


async def test_it_is_trained_again_when_the_recipe_changes(workshop: Workshop) -> None:
    await workshop.make()
    (workshop.folder / "sql.yaml").write_text(RECIPE.replace("3", "4"))
    assert await workshop.make() == 2
    assert await workshop.make() == 2


async def test_it_is_trained_again_when_the_data_changes(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    await workshop.make()
    rows = steps.training_rows
    monkeypatch.setattr(steps, "training_rows", lambda task, batch_size: rows(task, batch_size=batch_size, seed=1))
    assert await workshop.make() == 2


async def test_it_is_trained_again_when_the_base_changes(workshop: Workshop) -> None:
    await workshop.make()
    (workshop.folder / "base" / "chat_template.jinja").write_text("another")
    assert await workshop.make() == 2


async def test_an_interrupted_training_is_not_taken_for_a_module(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def fail(step: str, command: list[str], console: Console) -> None:
        raise UserError("stopped")

    train = workshop._train
    monkeypatch.setattr(steps, "_run", fail)
    with pytest.raises(UserError, match="stopped"):
        await workshop.make()

    monkeypatch.setattr(steps, "_run", train)
    assert await workshop.make() == 1


async def test_a_step_that_fails_names_itself_and_the_cursor_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    output = io.StringIO()
    command = [steps.sys.executable, "-c", "print('hello'); raise SystemExit(3)"]
    with pytest.raises(UserError, match=r"base: .* failed with exit code 3"):
        await steps._run("base", command, Console(file=output, force_terminal=True))
    assert capfd.readouterr().out == "hello\n"
    assert output.getvalue() == "\x1b[?25h"
