"""Function calling: which function with which arguments. From BFCL (Apache 2.0), split by function name.

One function call a question, from the parts of BFCL with one turn and Python types. A function is shown as a stub of
its signature, which takes half the tokens of its JSON schema. Two items that offer the same function are always on
the same side of the split, so that the name of a held-out function is nowhere in training, not even among the
functions that a question does not need. This is not a leaderboard score: items are chosen by length, and trained on.
"""

import json
import random
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from experiments.accuracy.items import Data, Family, Item, Size, epochs
from prefillshare.errors import UserError

PACKAGE = "bfcl_eval"
_PARTS = ("simple_python", "live_simple", "multiple", "live_multiple")
_MAX_PROMPT = 800  # characters of functions and question, about 300 tokens at most
_MAX_CALL = 160  # characters, less than max_new_tokens
_TYPES = {"integer": "int", "string": "str", "boolean": "bool", "array": "list", "tuple": "tuple", "dict": "dict"}


def build(seed: int, size: Size) -> Data:
    """Raises UserError when the package is missing, or has too few items for `size`."""
    rng = random.Random(f"functions {seed}")
    groups = _by_function(_read_items())
    rng.shuffle(groups)
    held_out: list[list[Item]] = []
    for wanted in (size.test, size.validation):
        taken: list[Item] = []
        for _ in range(len(groups)):
            if len(taken) >= wanted:
                break
            # A large group would fill a held-out part with one function; it is left to training.
            group = groups.pop()
            if len(group) <= max(3, wanted // 20):
                taken += group
            else:
                groups.insert(0, group)
        held_out.append(taken[:wanted])
    test, validation = held_out
    rows = list(chain.from_iterable(groups))
    if len(test) < size.test or len(validation) < size.validation or len(rows) < len(test):
        raise UserError(f"--items {size.test}: {PACKAGE} has too few short function calls for that; lower it")
    return Data(epochs(rows, size.train, rng.shuffle), validation, test)


def _by_function(items: list[Item]) -> list[list[Item]]:
    """Connected components: items that offer a common function are in one list."""
    group_of: dict[str, int] = {}
    groups: dict[int, list[Item]] = {}
    for number, item in enumerate(items):
        met = {group_of[name] for name in _names(item) if name in group_of}
        groups[number] = [*chain.from_iterable(groups.pop(group) for group in sorted(met)), item]
        for member in groups[number]:
            group_of.update(dict.fromkeys(_names(member), number))
    return list(groups.values())


def _read_items() -> list[Item]:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {PACKAGE} is not installed; run: pip install --no-deps bfcl-eval==2026.3.23")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    items = []
    for part in _PARTS:
        gold = {row["id"]: row["ground_truth"] for row in _read(folder / "possible_answer" / f"BFCL_v4_{part}.json")}
        for row in _read(folder / f"BFCL_v4_{part}.json"):
            item = _item(row, gold[row["id"]])
            if item is not None:
                items.append(item)
    return items


def _read(file: Path) -> list[dict[str, Any]]:
    """JSON values one behind the other; not every file of the package has one a line."""
    text, decoder, position = file.read_text(encoding="utf-8"), json.JSONDecoder(), 0
    rows = []
    while (rest := len(text[position:].lstrip())) > 0:
        value, position = decoder.raw_decode(text, len(text) - rest)
        rows.append(value)
    return rows


def _item(row: dict[str, Any], gold: list[dict[str, dict[str, list[Any]]]]) -> Item | None:
    """The row as an item, unless it is long, or is no single call with plain arguments."""
    turns = row["question"]
    if len(turns) != 1 or len(turns[0]) != 1 or len(gold) != 1 or len(row["function"]) > 4:
        return None
    content = "\n".join([*map(_stub, row["function"]), "", turns[0][0]["content"]])
    ((name, arguments),) = gold[0].items()
    if len(content) > _MAX_PROMPT or not _is_name(name):
        return None
    required = {key for function in row["function"] if function["name"] == name for key in _required(function)}
    chosen = {
        key: next(value for value in values if value != "")
        for key, values in arguments.items()
        if "" not in values or key in required
    }
    if any(isinstance(part, dict) for value in chosen.values() for part in _parts(value)):
        return None  # BFCL lists the possible values inside a dictionary too
    call = f"{name}({', '.join(f'{key}={value!r}' for key, value in chosen.items())})"
    if len(call) > _MAX_CALL:
        return None
    prompt = [
        {"role": "system", "content": "Answer the question with a call of one of the functions."},
        {"role": "user", "content": content},
    ]
    return Item(prompt, call, gold, tools=row["function"])


def _names(item: Item) -> list[str]:
    return [tool["name"] for tool in item.tools or ()]


def _parts(value: Any) -> list[Any]:
    return [part for element in value for part in _parts(element)] if isinstance(value, list) else [value]


def _is_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _required(function: dict[str, Any]) -> set[str]:
    return set(function["parameters"].get("required", ()))


def _stub(function: dict[str, Any]) -> str:
    required = _required(function)
    parameters, lines = [], []
    for name, about in function["parameters"]["properties"].items():
        kind = _TYPES.get(about["type"], about["type"])
        parameters.append(f"{name}: {kind}" if name in required else f"{name}: {kind} = ...")
        lines.append(f"  {name}: {about.get('description', '').strip()}")
    return "\n".join([f"{function['name']}({', '.join(parameters)})", f"  {function['description']}", *lines])


FAMILY = Family(
    name="functions",
    held_out="function name",
    build=build,
    scorer="call",
    steps=50,
    rates=(5e-5, 1e-4, 2e-4, 4e-4, 8e-4),
    max_new_tokens=88,
    longer=((2e-4, 3),),
    adapters=(1e-3, 2e-3, 4e-3),
)
