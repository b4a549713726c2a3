"""The walls between the rooms: who may import what, and which heavy library lives where."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import prefillshare

SOURCE = Path(prefillshare.__file__).parent
ROOMS = ("admin", "training", "evaluation", "engine", "router", "deployment", "workloads", "simulate", "bench")

UPPER = {"prefillshare.evaluation", "prefillshare.deployment", "prefillshare.simulate", "prefillshare.bench"}
FORBIDDEN = {
    "admin": {f"prefillshare.{room}" for room in ROOMS if room != "admin"} | {"vllm", "torch"},
    "training": {*UPPER, "prefillshare.engine", "prefillshare.router", "vllm"},
    "evaluation": {*UPPER - {"prefillshare.evaluation"}, "prefillshare.engine", "prefillshare.router", "vllm"},
    "engine": {*UPPER, "prefillshare.training", "prefillshare.router"},
    "router": {*UPPER, "prefillshare.training", "prefillshare.engine", "vllm", "torch"},
    "deployment": {*UPPER - {"prefillshare.deployment"}, "prefillshare.training", "vllm", "torch"},
    "simulate": {*UPPER - {"prefillshare.simulate"}, "prefillshare.training", "prefillshare.engine", "vllm", "torch"},
    "bench": {"prefillshare.training", "prefillshare.evaluation", "vllm", "torch"},
    "workloads": {*(f"prefillshare.{room}" for room in ROOMS if room != "workloads"), "vllm", "torch"},
    "": {f"prefillshare.{room}" for room in ROOMS} | {"vllm", "torch"},
}


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield node.module or ""


def sources(room: str) -> list[Path]:
    files = (SOURCE / room).rglob("*.py") if room else SOURCE.glob("*.py")
    # cli.py stands above all rooms and is held to importing them inside its commands by test_cli.
    return [file for file in files if file != SOURCE / "cli.py"]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    files = sources(room)
    assert files, f"no source in {room!r}"
    for file in files:
        for module in imported_modules(file):
            bad = [name for name in FORBIDDEN[room] if module == name or module.startswith(name + ".")]
            assert not bad, f"{file.relative_to(SOURCE)} imports {module}"
