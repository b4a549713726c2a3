from pathlib import Path

import pytest

from experiments.bench import __main__ as command
from experiments.bench.matrices import SHORT_PROMPT


@pytest.mark.parametrize(("what", "longest"), [("short", SHORT_PROMPT), ("full", None), ("float32", None)])
def test_long_prompts_are_left_out_where_there_is_no_time(
    what: str, longest: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(command, "measure", lambda *given: asked.extend(given) or 0)
    monkeypatch.setattr("sys.argv", ["bench", what, "--output", str(tmp_path)])
    assert command.main() == 0
    assert asked[1:] == [tmp_path, longest]
