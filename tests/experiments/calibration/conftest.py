from pathlib import Path

import pytest

from experiments.calibration import __main__ as command
from experiments.calibration import publish
from experiments.section import END
from tests.workloads.tokenisers import words


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the summary of all folders goes, which are beside it in `results`."""
    page = tmp_path / "docs" / "page.md"
    (page.parent / "results").mkdir(parents=True)
    page.write_text(f"before\n{publish.ALL}\nold\n{END}\nafter\n")
    monkeypatch.setattr(publish, "PAGE", page)
    monkeypatch.setattr(command, "load_tokenise", lambda base: words)
    return page
