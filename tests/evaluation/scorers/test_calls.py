from typing import Any

import pytest

from prefillshare.evaluation.scorers.calls import parse_calls


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ('weather(city="Oxford")', [("weather", {"city": "Oxford"})]),
        ("[a.b.c(x=1), d()]", [("a.b.c", {"x": 1}), ("d", {})]),
        (
            "```python\nf(x=-1.5, y=[1, (2,)], z={'k': True})\n```",
            [("f", {"x": -1.5, "y": [1, (2,)], "z": {"k": True}})],
        ),
        (
            "f(x=2*3, y=1/4, z=a, w=g(1), v='a' + 'b')",
            [("f", {"x": 6, "y": 0.25, "z": "a", "w": "g(1)", "v": "'a' + 'b'"})],
        ),
        ("f(x=9**9**9)", [("f", {"x": "9 ** 9 ** 9"})]),
        ("f(x=1/0)", [("f", {"x": "1 / 0"})]),
        ("f(1, 'b', x=2, **more)", [("f", {"*0": 1, "*1": "b", "x": 2, "**0": "more"})]),
        ("f(**more, x=2, x=1)", [("f", {"**0": "more", "*x": 2, "x": 1})]),
        ('{"name": "f", "arguments": {"x": 1}}', [("f", {"x": 1})]),
        ('[{"name": "f", "parameters": {"x": null}}, {"name": "g"}]', [("f", {"x": None}), ("g", {})]),
        (
            '[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]',
            [("f", {"x": 1})],
        ),
        (
            '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "g", "arguments": {}}',
            [("f", {}), ("g", {})],
        ),
        ("<tool_call>" * 2000 + "f(x=1)", [("f", {"x": 1})]),
        ("<tool_call>f()<tool_call>g()</tool_call>", [("g", {})]),
    ],
)
def test_calls_are_read_in_every_syntax(answer: str, calls: Any) -> None:
    assert parse_calls(answer) == calls


@pytest.mark.parametrize(
    "answer",
    [
        "I would call f.",
        "f",
        "f(x=1); g()",
        "x = f()",
        "[f(x=1), 3]",
        "f(x=1)(y=2)",
        "(lambda: 0)()",
        "f(x={[]: 1})",
        '{"arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "{"}',
        "3",
        "f(" * 5000,
        "<tool_call>" * 2000,
        "(" * 100_000,
        "\x00",
        "",
    ],
)
def test_anything_else_is_no_call(answer: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_calls(answer)
