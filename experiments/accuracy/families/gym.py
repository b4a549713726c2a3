"""Modules of reasoning-gym (Apache 2.0), and how its problems are asked and answered here."""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

from experiments.accuracy.items import Item
from prefillshare.errors import UserError

PACKAGE = "reasoning_gym"
_INSTRUCTION = "Solve the problem. Show your work and end with #### and the result."


def load(name: str) -> ModuleType:
    """A module of the package without the package's `__init__`, which imports all generators and what they need.

    Raises:
        UserError: the package is not installed.
    """
    if PACKAGE not in sys.modules:
        spec = find_spec(PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise UserError(f"the package {PACKAGE} is not installed; run: pip install --no-deps reasoning-gym==0.1.25")
        package = ModuleType(PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")


def worked(question: str, answer: str) -> Item:
    """`answer` is the working, then a line of #### and the result."""
    prompt = [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": question}]
    return Item(prompt, answer, answer)


def distinct(draw: Callable[[], Item], count: int) -> list[Item]:
    """`count` items with different questions."""
    items: dict[str, Item] = {}
    while len(items) < count:
        item = draw()
        items.setdefault(item.prompt[-1]["content"], item)
    return list(items.values())
