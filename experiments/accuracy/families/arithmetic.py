"""Arithmetic word problems from reasoning-gym (Apache 2.0), answered with the working before the result."""

import importlib
import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

from experiments.accuracy.items import Data, Family, Item, Size
from prefillshare.errors import UserError

PACKAGE = "reasoning_gym"
_INSTRUCTION = "Solve the problem. Show your work and end with #### and the result."


def build(seed: int, size: Size) -> Data:
    rng = random.Random(f"arithmetic {seed}")
    draws: list[Callable[[random.Random], Item]] = _gsm()
    rng.shuffle(draws)
    test, validation, train = draws[:12], draws[12:20], draws[20:]

    def draw(templates: list[Callable[[random.Random], Item]], count: int) -> list[Item]:
        items: dict[str, Item] = {}
        while len(items) < count:
            item = rng.choice(templates)(rng)
            if len(item.answer) < 260 and len(item.prompt[-1]["content"]) < 500:
                items.setdefault(item.prompt[-1]["content"], item)
        return list(items.values())

    return Data(draw(train, size.train), draw(validation, size.validation), draw(test, size.test))


def _gsm() -> list[Callable[[random.Random], Item]]:
    module = _import("arithmetic.gsm_symbolic.gsm_symbolic")
    data = module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=0, size=1))

    def of(template: int) -> Callable[[random.Random], Item]:
        def draw(rng: random.Random) -> Item:
            example = data.generators[template](rng, 1.0)
            cot = example.get("answer_cot") or example["metadata"]["answer_cot"]
            return _item(example["question"], cot)

        return draw

    return [of(template) for template in module.tasks_ok]


def _item(question: str, answer: str) -> Item:
    return Item([{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": question}], answer, answer)


def _import(name: str) -> ModuleType:
    """A module of the package without the package's `__init__`, which imports all generators and what they need."""
    if PACKAGE not in sys.modules:
        spec = find_spec(PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise UserError(f"the package {PACKAGE} is not installed; run: pip install --no-deps reasoning-gym==0.1.25")
        package = ModuleType(PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")


FAMILY = Family(
    name="arithmetic",
    held_out="problem template",
    build=build,
    scorer="number",
    steps=90,
    rates=(3e-4, 6e-4, 1.2e-3),
    max_new_tokens=100,
)
