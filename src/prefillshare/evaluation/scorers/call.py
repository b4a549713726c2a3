"""Function calls, compared by what they call and with which values.

`expected` has the form of the Berkeley Function Calling Leaderboard's ground truth, one object a call:

    [{"get_weather": {"city": ["Oxford", "Oxford, UK"], "unit": ["celsius", ""]}}]

Each argument lists its acceptable values; `""` among them says that it may be left out. The keys of an object that is
such a value, or an element of one, list theirs in the same way, but not those of objects inside these. The functions
on offer add type checks: the row's `functions`, or its `tools` (of which the model is told too), in BFCL's or OpenAI's
form.

A text, and so an assistant message's `tool_calls`, is read as an answer is, and its calls are the acceptable ones,
compared whole (whole.py). What follows is about ground truth alone.

A parameter that may be null (`"type": ["string", "null"]` or `nullable`) is met by null where null is acceptable, or
where it may be left out: OpenAI's strict mode has no other way to leave a parameter out. One of several types, or of
none, is compared by its value alone.

Where the package `bfcl_eval` is installed and there are functions, its own checker gives the verdict; else, and where a
null is given, which it does not know, the same rules do as they are written here (a test holds the two together). Calls
may come in any order.
"""

import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers.calls import Call, named_alone, parse_calls
from prefillshare.evaluation.scorers.schema import Functions, readable
from prefillshare.evaluation.scorers.whole import one_each, plain, same_calls

GroundTruth = list[dict[str, dict[str, list[Any]]]]

_TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip


def is_right(answer: str, item: Item) -> bool:
    try:
        calls = parse_calls(answer)
    except ValueError:
        return False
    return _are_right(calls, item)


def check(item: Item) -> None:
    try:
        expected = _right_calls(item.expected)
    except ValueError as error:
        raise BadField("expected", f"{error}") from None
    field = "functions" if "functions" in item.fields else "tools"
    offered = _offered(item)
    if not isinstance(offered, list) or not all(isinstance(_name(each), str) for each in offered):
        raise BadField(field, f"expected a list of functions, each with a name, found {offered!r:.80}")
    try:
        known = _functions(item)
    except ValueError as error:
        raise BadField(field, f"{error}") from None
    missing = [name for name, _ in expected if known and name not in known]
    if missing:
        raise BadField(field, f"there is no function {missing[0]!r}, which 'expected' calls")
    try:
        scored = _are_right(expected, item)
    except Exception as error:  # whatever it is, no answer to this item could be scored
        raise BadField("expected", f"it cannot be scored: {type(error).__name__}: {error}") from None
    if isinstance(item.expected, str) and not scored:  # some of the leaderboard's own ground truth is never met
        problem = "it would not be right itself, since it has a value that equals nothing"
        raise BadField("expected", f"{problem}, found {item.expected!r:.80}; write values as JSON's")


def _are_right(calls: list[Call], item: Item) -> bool:
    if isinstance(item.expected, str):
        return same_calls(calls, parse_calls(item.expected), _functions(item))
    return _agree([named_alone(call) for call in calls], _ground_truth(item.expected), _functions(item))


def _agree(calls: list[Call], truth: GroundTruth, functions: Functions) -> bool:
    if functions and not _has_null(calls, truth, functions) and (checker := bfcl_checker()) is not None:
        try:
            return checker(list(functions.values()), calls, truth)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            pass  # it assumes that values have the shapes of the leaderboard's own data
    return own_checker(functions, calls, truth)


def own_checker(functions: Functions, calls: list[Call], truth: GroundTruth) -> bool:
    """Whether every expected call is met by another one of `calls`, and none is left."""

    def meets(call: Call, expected: dict[str, dict[str, list[Any]]]) -> bool:
        ((name, arguments),) = expected.items()
        return _meets(call, name, arguments, functions.get(name))

    return one_each(calls, truth, meets)


@cache
def bfcl_checker() -> Callable[[list[dict[str, Any]], list[Call], GroundTruth], bool] | None:
    """BFCL's checker for Python calls of one turn, or None where the package is not installed."""
    # Its table of models imports every vendor's SDK; all that the checker asks it is whether dots in names are kept.
    name = "bfcl_eval.constants.model_config"
    stand_in = ModuleType(name)
    stand_in.MODEL_CONFIG_MAPPING = {"any": _DotsAreKept()}  # type: ignore[attr-defined]
    before = sys.modules.get(name)
    sys.modules[name] = stand_in
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    except ImportError:
        return None
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before

    def judge(functions: list[dict[str, Any]], calls: list[Call], truth: GroundTruth) -> bool:
        output = [{name: arguments} for name, arguments in calls]
        category = "multiple" if len(truth) == 1 else "parallel"  # `simple` is `multiple` with one function
        return bool(ast_checker(functions, output, truth, Language.PYTHON, category, "any")["valid"])

    return judge


class _DotsAreKept:
    underscore_to_dot = False


def _meets(call: Call, name: str, acceptable: dict[str, list[Any]], function: dict[str, Any] | None) -> bool:
    called, arguments = call
    if called != name:
        return False
    parameters = (function or {}).get("parameters", {})
    properties = parameters.get("properties", {key: {} for key in acceptable})
    required = parameters.get("required", [])
    left_out = [key for key, values in acceptable.items() if key not in arguments and "" not in values]
    if left_out or any(key not in arguments for key in required):
        return False
    return all(
        key in properties and key in acceptable and _value_meets(value, acceptable[key], properties[key])
        for key, value in arguments.items()
    )


def _value_meets(value: Any, acceptable: list[Any], declared: dict[str, Any]) -> bool:
    if declared.get("nullable"):
        if value is None:
            return None in acceptable or "" in acceptable
        acceptable = [each for each in acceptable if each is not None]
    name = declared.get("type", "")
    kind = _TYPES.get(name)
    if name == "tuple" and isinstance(value, tuple):
        value = list(value)
    if name == "float" and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            return False
    # A variable's name may stand for a value of another type: then the acceptable values are texts.
    instead = next((type(each) for each in acceptable if each != ""), None)
    is_variable = instead is not None and kind is not None and instead is not kind
    if kind is not None and type(value) is not kind:
        if type(value) is not instead:
            return False
        is_variable = True
    items = declared.get("items", {}) if name in ("array", "tuple") else {}
    element = items.get("type", "")
    if isinstance(value, list) and kind is list and element in _TYPES:
        typed = [each for each in value if each is not None] if items.get("nullable") else value
        if not _elements_meet(typed, acceptable, _TYPES[element]):
            return False
    if is_variable:
        return value in acceptable
    if isinstance(value, dict):
        return any(_dict_meets(value, each) for each in acceptable if isinstance(each, dict))
    if isinstance(value, list) and (element == "dict" or (value and all(isinstance(each, dict) for each in value))):
        return any(_dicts_meet(value, each) for each in acceptable if isinstance(each, list))
    if isinstance(value, list | tuple):
        return [plain(each) for each in value] in [
            [plain(each) for each in other] for other in acceptable if isinstance(other, list | str)
        ]
    return plain(value) in [plain(each) for each in acceptable if isinstance(value, str) or each != ""]


def _elements_meet(value: list[Any], acceptable: list[Any], kind: type) -> bool:
    """Whether there is an acceptable list that fits the elements' types; what is no list always fits."""

    def fits(each: Any, others: list[Any]) -> bool:
        instead = next((type(other) for other in others if other != ""), None)
        return type(each) is kind or (instead is not None and type(each) is instead)

    return any(not isinstance(other, list) or all(fits(each, other) for each in value) for other in acceptable)


def _dicts_meet(value: list[Any], acceptable: list[Any]) -> bool:
    return len(value) == len(acceptable) and all(
        _dict_meets(each, other) or (each is None and other is None)
        for each, other in zip(value, acceptable, strict=True)
    )


def _dict_meets(value: Any, acceptable: Any) -> bool:
    """`acceptable` lists the acceptable values of every key, as those of a call list the arguments'."""
    if not isinstance(value, dict) or not isinstance(acceptable, dict):
        return False
    lists = {key: values if isinstance(values, list) else [values] for key, values in acceptable.items()}
    if any(key not in value and "" not in values for key, values in lists.items()):
        return False
    return all(key in lists and plain(each) in map(plain, lists[key]) for key, each in value.items())


def _has_null(calls: list[Call], truth: GroundTruth, functions: Functions) -> bool:
    """Whether a null is given, or acceptable, where the functions permit one."""
    values = [(name, key, value) for name, arguments in calls for key, value in arguments.items()]
    for call in truth:
        values += [(name, key, each) for name, lists in call.items() for key in lists for each in lists[key]]
    return any(_is_null(value, _parameter(functions, name, key)) for name, key, value in values)


def _is_null(value: Any, declared: dict[str, Any]) -> bool:
    if isinstance(value, list | tuple):
        return bool(declared.get("items", {}).get("nullable")) and any(each is None for each in value)
    return value is None and bool(declared.get("nullable"))


def _parameter(functions: Functions, name: str, key: str) -> dict[str, Any]:
    declared: dict[str, Any] = functions.get(name, {}).get("parameters", {}).get("properties", {}).get(key, {})
    return declared


def _right_calls(expected: Any) -> list[Call]:
    """Those that are expected, with the first acceptable value of what may not be left out.

    Raises ValueError when `expected` is neither ground truth nor calls.
    """
    if isinstance(expected, str):
        return parse_calls(expected)
    return [(name, _first_values(lists)) for call in _ground_truth(expected) for name, lists in call.items()]


def _first_values(lists: dict[str, Any]) -> dict[str, Any]:
    lists = {key: values if isinstance(values, list) else [values] for key, values in lists.items()}
    firsts = {key: next((each for each in values if each != ""), "") for key, values in lists.items()}
    return {key: _first_value(value) for key, value in firsts.items() if value != ""}


def _first_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_first_value(each) for each in value]
    return _first_values(value) if isinstance(value, dict) else value


def _functions(item: Item) -> Functions:
    """Raises ValueError when a schema cannot be read."""
    return {_name(each): readable(_description(each)) for each in _offered(item)}


def _offered(item: Item) -> Any:
    return item.fields.get("functions", item.tools or [])


def _name(function: Any) -> Any:
    return _description(function).get("name") if isinstance(function, dict) else None


def _description(function: dict[str, Any]) -> dict[str, Any]:
    inner = function.get("function")  # OpenAI's form wraps it
    return inner if isinstance(inner, dict) else function


def _ground_truth(expected: Any) -> GroundTruth:
    """Raises ValueError when it is something else."""
    if not isinstance(expected, list) or not expected:
        raise ValueError(f"expected a list of calls, found {expected!r:.80}")
    for call in expected:
        if not isinstance(call, dict) or len(call) != 1:
            raise ValueError(f"a call is an object with the function's name as its only key, found {call!r:.80}")
        (arguments,) = call.values()
        if not isinstance(arguments, dict) or not all(isinstance(each, list) for each in arguments.values()):
            raise ValueError(f"every argument needs a list of acceptable values, found {arguments!r:.80}")
    return expected
