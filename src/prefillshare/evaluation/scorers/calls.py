"""Reads the function calls that a model writes: Python syntax, or one of the JSON forms of chat templates.

    get_weather(city="Oxford")                 [get_weather(city="Oxford"), get_time(zone="UTC")]
    {"name": "get_weather", "arguments": {"city": "Oxford"}}     a list of them, or OpenAI's `tool_calls`
    <tool_call>{"name": ..., "arguments": ...}</tool_call>       any number of times

Nothing of the answer is evaluated: values are literals, arithmetic on numbers is computed here, a variable is read as
its name and a nested call as its text. Of what has no name of its own, the first positional argument is called `*0`,
what is unpacked with `**` first `**0`, and of an argument that Python syntax gives twice the earlier value `*name`.
"""

import ast
import re
import warnings
from typing import Any

from prefillshare.evaluation.scorers.text import parse_json, unfenced

Call = tuple[str, dict[str, Any]]

_OPEN = "<tool_call>"
_STAR = "*"  # no parameter's name begins with it
_UNPACKED = "**"
_TAG = re.compile(rf"{_OPEN}(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def parse_calls(answer: str) -> list[Call]:
    """The calls in the order of the answer. Raises ValueError when it is anything but calls."""
    tagged = _TAG.findall(answer)
    if tagged:  # what is read is what follows the last of several opening tags, however often a model repeats them
        return [call for text in tagged for call in _calls(text.rpartition(_OPEN)[2])]
    return _calls(answer)


def _calls(text: str) -> list[Call]:
    text = unfenced(text)
    try:
        value = parse_json(text)
    except ValueError:
        return _python_calls(text)
    return [_json_call(each) for each in (value if isinstance(value, list) else [value])]


def _json_call(value: Any) -> Call:
    if isinstance(value, dict):
        function = value.get("function")
        value = function if isinstance(function, dict) else value
        name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):  # OpenAI's form: JSON in JSON
            arguments = parse_json(arguments)
        if isinstance(name, str) and isinstance(arguments, dict):
            return name, arguments
    raise ValueError(f"not a call: {value!r:.80}")


def _python_calls(text: str) -> list[Call]:
    try:
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(text, mode="eval").body
        elements = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_python_call(element) for element in elements]
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"neither JSON nor a Python call: {error}") from None


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or not re.fullmatch(r"\w+(\.\w+)*", name := ast.unparse(node.func)):
        raise ValueError(f"not a call: {ast.unparse(node):.80}")
    arguments = {f"{_STAR}{number}": _value(value) for number, value in enumerate(node.args)}
    unpacked = [keyword.value for keyword in node.keywords if keyword.arg is None]
    arguments |= {f"{_UNPACKED}{number}": ast.unparse(value) for number, value in enumerate(unpacked)}
    for keyword in node.keywords:
        if keyword.arg in arguments:  # given twice: the last counts, as for the leaderboard's parser
            arguments[f"{_STAR}{keyword.arg}"] = arguments[keyword.arg]
        if keyword.arg is not None:
            arguments[keyword.arg] = _value(keyword.value)
    return name, arguments


def named_alone(call: Call) -> Call:
    """The call without positional arguments and earlier values, which the leaderboard's parser does not keep either."""
    name, arguments = call
    named = {key: value for key, value in arguments.items() if not key.startswith(_STAR) or key.startswith(_UNPACKED)}
    return name, named


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.List():
            return [_value(each) for each in node.elts]
        case ast.Tuple():
            return tuple(_value(each) for each in node.elts)
        case ast.Dict():
            keys = [None if key is None else _value(key) for key in node.keys]
            try:
                return dict(zip(keys, map(_value, node.values), strict=True))
            except TypeError:
                raise ValueError(f"not a value: {ast.unparse(node):.80}") from None
        case ast.UnaryOp() | ast.BinOp():
            return _arithmetic(node)
    return ast.unparse(node)


def _arithmetic(node: ast.UnaryOp | ast.BinOp) -> Any:
    """A number where the operands are numbers, else the text. No powers: they could be of any size."""
    operands = [_value(each) for each in ([node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right])]
    if not all(isinstance(each, int | float) for each in operands):
        return ast.unparse(node)
    try:
        match node.op, operands:
            case ast.USub(), [one]:
                return -one
            case ast.UAdd(), [one]:
                return one
            case ast.Add(), [one, other]:
                return one + other
            case ast.Sub(), [one, other]:
                return one - other
            case ast.Mult(), [one, other]:
                return one * other
            case ast.Div(), [one, other]:
                return one / other
    except ArithmeticError:
        pass
    return ast.unparse(node)
