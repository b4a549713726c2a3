from pathlib import Path

import pytest

from experiments.bench import glance, places
from experiments.bench.publish import START
from experiments.section import END
from prefillshare.bench.matrix import FULL
from tests.bench.written import CALL, SESSION, write_run


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """What `publish` writes to."""
    found = (tmp_path / "README.md", tmp_path / "bench.md")
    for page in found:
        page.write_text(f"before\n{START}\n{END}\nafter\n")
    monkeypatch.setattr(places, "PAGES", found)
    monkeypatch.setattr(glance, "GLANCES", {})
    monkeypatch.setattr(places, "PUBLISHED", tmp_path / "published")
    return found


@pytest.fixture
def results(tmp_path: Path, pages: tuple[Path, Path]) -> Path:
    """Two loads, two repeats; `per-model` is three times as slow, and at the higher load it is cut off. With
    `pages`, so that nothing is published into the real ones."""
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "costs.json").write_text('{"cost": {"step_s": 0.1, "token_s": 0.2}, "leg_s": 0, "link_bytes_per_s": 1}')
    (folder / "matrix.json").write_text(FULL.model_dump_json())
    for load in ("closed:4", "closed:12"):
        for repeat in (0, 1):
            write_run(folder, [CALL, SESSION], load=load, repeat=repeat)
            slow = SESSION | {"latency_s": 60.0, "calls": 4 if load == "closed:4" else 2}
            write_run(folder, [CALL, slow], load=load, repeat=repeat, system="per-model", seconds=180.0)
    return folder
