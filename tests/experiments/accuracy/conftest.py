"""A base of a few thousand parameters and a family that costs seconds."""

from pathlib import Path

import pytest

from experiments.accuracy import run as run_module
from experiments.accuracy.cells import BATCH_SIZE
from experiments.accuracy.families import FAMILIES
from experiments.accuracy.items import Data, Family, Item, Size
from experiments.accuracy.run import Grid
from tests.training.tiny import save_base


def toy(seed: int, size: Size) -> Data:
    def items(first: int, count: int) -> list[Item]:
        texts = [f"{seed} {number}" for number in range(first, first + count)]
        return [Item([{"role": "user", "content": text}], f"#{text}", f"#{text}") for text in texts]

    return Data(items(0, size.train), items(1000, size.validation), items(2000, size.test))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Family:
    family = Family("toy", "number", toy, scorer="number", steps=2, rates=(1e-3, 1e-2), max_new_tokens=3)
    monkeypatch.setitem(FAMILIES, "toy", family)
    monkeypatch.setattr(run_module, "FAMILIES", FAMILIES)
    assert family.steps * BATCH_SIZE < 1000
    return family


@pytest.fixture
def grid(family: Family, base: Path, tmp_path: Path) -> Grid:
    return Grid(
        families=(family.name,),
        seeds=(0,),
        rates=None,
        items=4,
        base=base,
        results=tmp_path / "results",
        checkpoints=tmp_path / "checkpoints",
    )
