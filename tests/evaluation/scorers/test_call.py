import json
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import pytest

from prefillshare.evaluation.items import BadField, Item
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.evaluation.scorers.call import bfcl_checker, own_checker
from prefillshare.evaluation.scorers.calls import parse_calls

score = SCORERS["call"]

TOOLS = [
    {
        "name": "order",
        "description": "",
        "parameters": {
            "type": "dict",
            "properties": {
                "product": {"type": "string"},
                "count": {"type": "integer"},
                "price": {"type": "float"},
                "gift": {"type": "boolean"},
                "colours": {"type": "array", "items": {"type": "string"}},
                "size": {"type": "tuple", "items": {"type": "integer"}},
                "address": {"type": "dict", "properties": {}},
                "lines": {"type": "array", "items": {"type": "dict"}},
            },
            "required": ["product"],
        },
    },
    {"name": "stop", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}},
]
TRUTH = [
    {
        "order": {
            "product": ["pine table", "table, pine"],
            "count": [2, ""],
            "price": [3.0, 4, ""],
            "gift": [True, ""],
            "colours": [["red", "Dark Blue"], ""],
            "size": [[1, 2], ""],
            "address": [{"city": ["Oxford"], "street": ["High St.", ""]}, ""],
            "lines": [[{"n": [1]}, {"n": [2, 3]}], ""],
        }
    }
]
CALLS = [
    ("order(product='pine table')", True),
    ("order(product='Table Pine', count=2)", True),
    ("order(product='chair')", False),
    ("order(count=2)", False),
    ("order()", False),
    ("purchase(product='pine table')", False),
    ("order(product='pine table', more=1)", False),
    ("order(product='pine table', count=3)", False),
    ("order(product='pine table', count='2')", False),
    ("order(product='pine table', count=2.0)", False),
    ("order(product='pine table', count=True)", False),
    ("order(product='pine table', price=3)", True),
    ("order(product='pine table', price=4)", True),
    ("order(product='pine table', price=3.5)", False),
    ("order(product='pine table', price='3.0')", False),
    ("order(product='pine table', gift=True)", True),
    ("order(product='pine table', gift=1)", False),
    ("order(product='pine table', gift=False)", False),
    ("order(product='pine table', colours=['red', 'dark blue'])", True),
    ("order(product='pine table', colours=['dark blue', 'red'])", False),
    ("order(product='pine table', colours='red')", False),
    ("order(product='pine table', colours=[1, 2])", False),
    ("order(product='pine table', colours=[])", True),
    ("order(product='pine table', size=(1, 2))", True),
    ("order(product='pine table', size=[1, 2])", True),
    ("order(product='pine table', size=[1.0, 2])", True),  # may be left out, so BFCL lets the elements' types pass
    ("order(product='pine table', address={'city': 'oxford'})", True),
    ("order(product='pine table', address={'city': 'oxford', 'street': 'high st'})", True),
    ("order(product='pine table', address={'street': 'High St.'})", False),
    ("order(product='pine table', address={'city': 'oxford', 'zip': 1})", False),
    ("order(product='pine table', address='oxford')", False),
    ("order(product='pine table', lines=[{'n': 1}, {'n': 3}])", True),
    ("order(product='pine table', lines=[{'n': 1}])", False),
    ("order(product='pine table', lines=[{'n': 2}, {'n': 1}])", False),
    ("order(product=None)", False),
    ("order(product=['pine table'])", False),
    ("order(product='pine table'), order(product='pine table')", False),
    ("[order(product='pine table')]", True),
]


@pytest.fixture(params=["own", "bfcl"])
def checker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "bfcl":
        if find_spec("bfcl_eval") is None:
            pytest.skip("bfcl_eval is not installed")
        assert bfcl_checker() is not None
    else:
        monkeypatch.setattr("prefillshare.evaluation.scorers.call.bfcl_checker", lambda: None)


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(("answer", "right"), CALLS)
def test_values_are_compared_as_bfcl_compares_them(answer: str, right: bool) -> None:
    item = Item("question", TRUTH, tools=TOOLS)
    score.check(item)
    assert score(answer, item) is right


@pytest.mark.usefixtures("checker")
def test_several_calls_may_come_in_any_order() -> None:
    item = Item("question", [{"order": {"product": ["a"]}}, {"order": {"product": ["b"]}}, {"stop": {}}], tools=TOOLS)
    assert score("[stop(), order(product='b'), order(product='a')]", item)
    assert not score("[stop(), order(product='a'), order(product='a')]", item)
    assert not score("[order(product='b'), order(product='a')]", item)
    twice = Item("question", [{"order": {"product": ["a"]}}] * 2, tools=TOOLS)
    assert score("[order(product='a'), order(product='a')]", twice)
    assert not score("[order(product='a'), order(product='b')]", twice)


def test_openais_form_of_tools_and_answers() -> None:
    parameters = {
        "type": "object",
        "properties": {"price": {"type": "number"}, "at": {"type": "object"}},
    }
    tools = [{"type": "function", "function": {"name": "order", "parameters": parameters}}]
    item = Item("question", [{"order": {"price": [3], "at": [{"city": ["Rome"]}]}}], tools=tools)
    score.check(item)
    answer = [{"function": {"name": "order", "arguments": json.dumps({"price": 3, "at": {"city": "Rome"}})}}]
    assert score(json.dumps(answer), item)


# JSON schema beyond what the leaderboard's data has, as OpenAI's strict mode and generators of schemas write it.
FORMS = [
    ({"type": ["string", "null"]}, ["Oxford"], "'oxford'", True),
    ({"type": ["string", "null"]}, ["Oxford"], "3", False),
    ({"type": ["string", "null"]}, ["Oxford"], "None", False),
    ({"type": ["null", "string"]}, [None, "Oxford"], "None", True),
    ({"type": ["null", "string"]}, [None, "Oxford"], "'oxford'", True),
    ({"type": ["null", "string"]}, [None, "Oxford"], "'Rome'", False),
    ({"type": ["string", "null"]}, ["Oxford", ""], "None", True),  # strict mode has no other way to leave it out
    ({"type": "string", "nullable": True}, ["Oxford", None], "None", True),
    ({"type": "string"}, ["Oxford", ""], "None", False),
    ({"type": ["number", "null"]}, [3], "3", True),
    ({"type": ["string", "integer"]}, [3, "three"], "'Three'", True),
    ({"type": ["string", "integer"]}, [3, "three"], "4", False),
    ({"type": None}, ["Oxford"], "'oxford'", True),
    ({"type": "array", "items": {"type": ["string", "null"]}}, [["a", "b"]], "['A', 'b']", True),
    ({"type": "array", "items": {"type": ["string", "null"]}}, [["a", "b"]], "['a', 3]", False),
    ({"type": "array", "items": {"type": ["string", "null"]}}, [["a", None]], "['A', None]", True),
    ({"type": "array", "items": {"type": ["string", "null"]}}, [["a", None]], "['a', 'b']", False),
    ({"type": "array", "items": {"type": ["object", "null"]}}, [[{"n": [1]}, None]], "[{'n': 1}, None]", True),
    ({"type": "array", "items": None}, [["a"]], "['A']", True),
    ({"type": "array", "items": [{"type": "string"}]}, [["a"]], "['A']", True),
]


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(("declared", "acceptable", "value", "right"), FORMS)
def test_forms_of_json_schema_that_bfcl_does_not_have(
    declared: dict[str, Any], acceptable: list[Any], value: str, right: bool
) -> None:
    parameters = {"type": "object", "properties": {"x": declared, "items": {"type": "string"}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}]
    item = Item("question", [{"f": {"x": acceptable}}], tools=tools)
    score.check(item)
    assert score(f"f(x={value})", item) is right


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(
    "parameters", [None, {}, {"type": "object", "properties": None}, {"properties": {"x": {}}, "required": None}]
)
def test_parameters_may_be_undeclared(parameters: Any) -> None:
    item = Item("question", [{"f": {"x": ["C"]}}], tools=[{"function": {"name": "f", "parameters": parameters}}])
    score.check(item)
    assert score("f(x='c')", item)
    assert not score("f(x='d')", item)


def test_bfcls_checker_judges_where_null_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def judge(functions: list[dict[str, Any]], calls: Any, truth: Any) -> bool:
        judged.append(functions[0]["parameters"]["properties"]["x"]["type"])
        return True

    monkeypatch.setattr("prefillshare.evaluation.scorers.call.bfcl_checker", lambda: judge)
    parameters = {"type": "object", "properties": {"x": {"type": ["number", "null"]}}}
    item = Item("question", [{"f": {"x": [3, ""]}}], tools=[{"function": {"name": "f", "parameters": parameters}}])
    assert score("f(x=3)", item)
    assert judged == ["float"]
    assert score("f(x=None)", item)
    assert judged == ["float"]


@pytest.mark.usefixtures("checker")
def test_an_integer_beyond_every_float_is_a_wrong_float() -> None:
    assert not score(f"order(product='pine table', price={'9' * 400})", Item("question", TRUTH, tools=TOOLS))


def test_without_tools_values_are_compared_alone() -> None:
    item = Item("question", [{"f": {"x": [1], "y": ["a", ""]}}])
    assert score("f(x=1)", item)
    assert score('{"name": "f", "arguments": {"x": 1, "y": "A"}}', item)
    assert not score("f(x=2)", item)
    assert not score("f(x=1, z=1)", item)


def test_an_expected_text_is_read_as_an_answer_is() -> None:
    item = Item("question", '[f(x=[1, 2]), g(y="Oxford, UK")]')
    score.check(item)
    assert score('g(y="oxford uk"), f(x=[1,2])', item)
    assert not score('g(y="oxford"), f(x=[1,2])', item)


@pytest.mark.parametrize(
    ("expected", "tools", "field"),
    [
        ("no call", None, "expected"),
        ([], None, "expected"),
        ([{"f": {}, "g": {}}], None, "expected"),
        ([{"f": {"x": 1}}], None, "expected"),
        ([{"f": {}}], TOOLS, "tools"),
        ([{"f": {}}], [{"description": "nameless"}], "tools"),
    ],
)
def test_mistakes_in_the_data_are_found_beforehand(expected: Any, tools: Any, field: str) -> None:
    with pytest.raises(BadField, match=f"field '{field}'"):
        score.check(Item("question", expected, tools=tools))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "parameters.*found \\[\\]"),
        ({"properties": []}, "properties.*found \\[\\]"),
        ({"properties": {"x": "string"}}, "'x'.*found 'string'"),
        ({"properties": {"x": {"type": {"a": 1}}}}, "'x'.*type.*found {'a': 1}"),
        ({"properties": {"x": {"type": ["string", 1]}}}, "'x'.*type.*found \\['string', 1\\]"),
        ({"properties": {"x": {"items": {"type": 3}}}}, "'x'.*type.*found 3"),
        ({"properties": {"x": {}}, "required": "x"}, "required.*found 'x'"),
    ],
)
def test_a_schema_that_cannot_be_read_is_found_beforehand(parameters: Any, message: str) -> None:
    item = Item("question", [{"f": {}}], tools=[{"function": {"name": "f", "parameters": parameters}}])
    with pytest.raises(BadField, match=f"field 'tools': function 'f': .*{message}"):
        score.check(item)


def test_the_expected_call_is_scored_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []

    def fails(functions: Any, calls: Any, truth: Any) -> bool:
        scored.append(calls)
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr("prefillshare.evaluation.scorers.call.own_checker", fails)
    expected = [{"f": {"x": ["", 1], "y": [""], "z": [{"a": [2, 3], "b": [""]}], "v": [[{"a": [4]}]]}}, {"g": {}}]
    with pytest.raises(BadField, match=r"field 'expected'.*TypeError: unhashable type: 'list'"):
        score.check(Item("question", expected))
    assert scored == [[("f", {"x": 1, "z": {"a": 2}, "v": [{"a": 4}]}), ("g", {})]]


# Ways to spoil a right call, so that verdicts of both kinds are compared on the leaderboard's data.
def _spoilt(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    made = [arguments, {**arguments, "unexpected": 1}]
    for key, value in arguments.items():
        others = [None, "", "other", 0, 1, 1.5, True, [], [value], {}, {"a": 1}, f"{value}", f" {value}!".upper()]
        made += [{**arguments, key: other} for other in others]
        made.append({name: each for name, each in arguments.items() if name != key})
    return made


def _plain_value(acceptable: Any) -> Any:
    value = next((each for each in acceptable if each != ""), "")
    if isinstance(value, dict):
        return {key: _plain_value(each) if isinstance(each, list) else each for key, each in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return [{key: _plain_value(each) for key, each in one.items()} for one in value]
    return value


@pytest.mark.skipif(find_spec("bfcl_eval") is None, reason="bfcl_eval is not installed")
@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel", "live_simple", "live_multiple"])
def test_the_own_checker_agrees_with_bfcls(category: str) -> None:
    theirs = bfcl_checker()
    assert theirs is not None
    data = files("bfcl_eval") / "data"
    questions = (data / f"BFCL_v4_{category}.json").read_text().splitlines()[::3]
    answers = (data / "possible_answer" / f"BFCL_v4_{category}.json").read_text().splitlines()[::3]
    verdicts = {True: 0, False: 0}
    for question, answer in zip(map(json.loads, questions), map(json.loads, answers), strict=True):
        assert question["id"] == answer["id"]
        truth, functions = answer["ground_truth"], {each["name"]: each for each in question["function"]}
        ((name, acceptable),) = truth[0].items()
        rest = [
            (each, {k: _plain_value(v) for k, v in args.items()}) for call in truth[1:] for each, args in call.items()
        ]
        right = {key: _plain_value(values) for key, values in acceptable.items() if key in values or values != [""]}
        for arguments in _spoilt(right):
            calls = [*rest, (name, arguments)]
            try:
                expected = theirs(list(functions.values()), calls, truth)
            except (AttributeError, LookupError, TypeError):
                continue
            assert own_checker(functions, calls, truth) == expected, (question["id"], calls, truth)
            verdicts[expected] += 1
    assert min(verdicts.values()) > 50, verdicts
    assert parse_calls("f()") == [("f", {})]


@pytest.mark.parametrize(
    ("answer", "right"),
    [('f("x")', True), ('f("y")', False), ("f()", False), ('f("x", 1)', False), ('f("x", **more)', False)],
)
def test_positional_arguments_of_a_text_are_compared_by_place(answer: str, right: bool) -> None:
    assert SCORERS["call"](answer, Item("question", 'f("x")')) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('f(x="a", y="b")', True),
        ('f(y="b", x="a")', True),
        ('f(1, x="a", y="b")', True),
        ('f(x="c", x="a", y="b")', True),
        ('f(x="a", x="c", y="b")', False),
        ('f(x="a", y="b", **more)', False),
        ('f(x="a", **{"y": "b"})', False),
    ],
)
def test_python_calls_are_read_as_by_the_leaderboards_parser(answer: str, right: bool) -> None:
    """Its `resolve_ast_call` skips positional arguments, takes the last of two values, and keeps what is unpacked."""
    item = Item("question", [{"f": {"x": ["a"], "y": ["b"]}}])
    assert SCORERS["call"](answer, item) is right


@pytest.mark.parametrize("answer", ["f(x=1, **more)", "f(x=2, x=1)", "f(1, x=1)", "f(**{'x': 1})"])
def test_of_a_text_nothing_is_left_out_that_an_answer_gives(answer: str) -> None:
    assert not SCORERS["call"](answer, Item("question", "f(x=1)"))


def test_what_is_unpacked_may_stand_anywhere() -> None:
    assert SCORERS["call"]("f(**more, x=1)", Item("question", "f(x=1, **more)"))
