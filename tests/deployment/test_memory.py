from pathlib import Path

import psutil
import pytest

from prefillshare.deployment import memory
from prefillshare.deployment.memory import available_bytes


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outermost control group; this process is in `unit`, inside it, and the machine has any amount of memory."""
    machine = psutil.virtual_memory()._replace(available=2**60)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("9:memory:/old\n0::/unit\n")
    (tmp_path / "unit").mkdir()
    return tmp_path


def limit(group: Path, most: str, used: int, inactive_file: int = 0) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\n")


def test_without_limits_it_is_the_machines(groups: Path) -> None:
    assert available_bytes() == 2**60
    limit(groups / "unit", "max", 1000)
    assert available_bytes() == 2**60
    (groups / "own").unlink()
    assert available_bytes() == 2**60


def test_the_narrowest_limit_counts_less_what_is_used_but_for_files(groups: Path) -> None:
    limit(groups / "unit", "8000", 3000, inactive_file=1000)
    assert available_bytes() == 6000
    limit(groups, "5000", 4000)
    assert available_bytes() == 1000
    limit(groups, "5000", 5001)
    assert available_bytes() == 0


def test_a_container_sees_its_limit_as_the_outermost(groups: Path) -> None:
    (groups / "own").write_text("0::/\n")
    limit(groups, "5000", 4000)
    assert available_bytes() == 1000
    (groups / "own").write_text("0::/of/the/host\n")
    assert available_bytes() == 1000
