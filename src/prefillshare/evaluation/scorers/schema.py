"""Descriptions of functions, read so that the checkers of calls (call.py) find what they look for.

They know the types of the Berkeley Function Calling Leaderboard, one a parameter. JSON schema, in which OpenAI's tools
are written, has more forms: other names, several types, null among them, null in place of an object or a list.
"""

from typing import Any

Functions = dict[str, dict[str, Any]]  # by name: BFCL's description of a function

_TYPE_NAMES = {"number": "float", "object": "dict"}  # JSON schema's and BFCL's


def readable(function: dict[str, Any]) -> dict[str, Any]:
    """A description in BFCL's form, with `nullable` beside the type of whatever may be null.

    `type` is the only one beside null: it is missing where there is none, or are several. That goes for parameters and
    the elements of lists; what is nested deeper no checker reads.

    Raises:
        ValueError: it names the function and the part of its schema that is neither BFCL's form nor JSON schema's.
    """
    where = f"function {function.get('name')!r}: "
    parameters = dict(_require(function.get("parameters"), dict, f"{where}'parameters'") or {})
    properties = _require(parameters.pop("properties", None), dict, f"{where}'properties'")
    required = _require(parameters.get("required"), list, f"{where}'required'") or []
    if properties is not None:
        parameters["properties"] = {key: _declared(each, f"{where}{key!r}") for key, each in properties.items()}
    return {**function, "parameters": {**parameters, "required": required}}


def _declared(schema: Any, where: str) -> dict[str, Any]:
    made = _with_one_type(_require(schema, dict, where) or {}, where)
    items = made.pop("items", None)
    if isinstance(items, dict):  # else the elements are free, or each has a schema of its own
        made["items"] = _with_one_type(items, where)
    return made


def _with_one_type(schema: dict[str, Any], where: str) -> dict[str, Any]:
    made, declared = dict(schema), schema.get("type")
    types = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(each, str) for each in types):
        raise ValueError(f"{where}: 'type' is a text or a list of texts, found {declared!r:.80}")
    others = [each for each in types if each != "null"]
    made.pop("type", None)
    if len(others) == 1:
        made["type"] = _TYPE_NAMES.get(others[0], others[0])
    made["nullable"] = len(others) < len(types) or schema.get("nullable") is True
    return made


def _require(value: Any, kind: type, where: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{where} is {'an object' if kind is dict else 'a list'} in a schema, found {value!r:.80}")
    return value
