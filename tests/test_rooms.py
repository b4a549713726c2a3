"""The walls between the rooms: who may import what, and which heavy library lives where."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import prefillshare

SOURCE = Path(prefillshare.__file__).parent
ROOMS = {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").exists()}

# Besides itself and the modules that are in no room. These import no room, and are ROOT here.
ROOT = ""
ALLOWED: dict[str, set[str]] = {
    ROOT: set(),
    "admin": set(),
    "training": set(),
    "engine": set(),
    "router": set(),
    "workloads": set(),
    "evaluation": {"training"},
    "deployment": {"engine", "router"},
    "simulate": {"router", "workloads"},
    "bench": {"deployment", "engine", "simulate", "workloads"},
}
HEAVY = {"vllm": {"engine"}, "torch": {"engine", "training", "evaluation"}}
CLI = SOURCE / "cli.py"  # stands above all rooms, and is held to importing them inside its commands by test_cli


def imported_names(text: str) -> Iterator[str]:
    """Each with its module: `a.b.c` for `from a.b import c`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trespasses(room: str, text: str) -> list[str]:
    """What a file of the room imports and must not."""
    return [name for name in imported_names(text) if not may_import(room, name)]


def may_import(room: str, name: str) -> bool:
    package, _, rest = name.partition(".")
    if package in HEAVY:
        return room in HEAVY[package]
    if package != "prefillshare":
        return True
    module = rest.partition(".")[0]
    if module == CLI.stem:
        return room == ROOT
    return module not in ROOMS or module in ALLOWED[room] | {room}


def sources(room: str) -> list[Path]:
    files = (SOURCE / room).rglob("*.py") if room else SOURCE.glob("*.py")
    return [file for file in files if file != CLI]


def test_every_room_is_walled() -> None:
    assert set(ALLOWED) - {ROOT} == ROOMS


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_is_allowed_to(room: str) -> None:
    files = sources(room)
    assert files, f"no source in {room!r}"
    found = {str(file.relative_to(SOURCE)): trespasses(room, file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("room", "line", "bad"),
    [
        ("router", "from prefillshare.workloads.session import Session", True),
        ("router", "from prefillshare import admin", True),
        ("router", "import prefillshare.engine.handoff", True),
        ("router", "from prefillshare.router import sse", False),
        ("router", "from prefillshare.router_config import RouterConfig", False),
        ("router", "def later():\n    import torch", True),
        ("router", "from prefillshare.cli import app", True),
        ("training", "from torch.nn import Module", False),
        ("training", "import vllm", True),
        ("bench", "from prefillshare.evaluation.items import Item", True),
        ("bench", "from prefillshare.simulate.plan import plan", False),
        (ROOT, "from prefillshare.router.pool import Pool", True),
    ],
)
def test_the_walls_stop_what_they_must(room: str, line: str, bad: bool) -> None:
    assert bool(trespasses(room, line)) is bad
