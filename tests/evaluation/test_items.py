import json
from pathlib import Path
from typing import Any

import pytest

from prefillshare.errors import UserError
from prefillshare.evaluation.items import BadField, read_items

USER = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "42"}
EMPTY = {"role": "assistant", "content": ""}


def write(tmp_path: Path, *rows: Any) -> Path:
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def test_all_forms_of_rows_are_read(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    file = write(
        tmp_path,
        {"prompt": "How many?", "expected": 42, "tests": "x", "tools": [{"name": "f"}]},
        {"prompt": [USER], "expected": None},
        {"prompt": "How many?", "completion": " 42"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER, USER, ANSWER]},
        {"prompt": [USER], "completion": [call]},
        {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False}, "tools": "[]"},
        {"messages": [USER, ANSWER], "chat_template_kwargs": None, "tools": '[{"name": "f"}]'},
    )
    first, null, text, chat, conversation, tool_call, settings, described = read_items(file)
    assert (first.prompt, first.expected, first.fields) == ("How many?", 42, {"tests": "x"})
    assert (first.tools, first.line) == ([{"name": "f"}], 1)
    assert (null.prompt, null.expected, null.tools) == ([USER], None, None)
    assert text.expected == " 42"
    assert (chat.prompt, chat.expected) == ([USER], "42")
    assert (conversation.prompt, conversation.expected) == ([USER, ANSWER, USER], "42")
    assert json.loads(tool_call.expected) == call["tool_calls"]
    assert (settings.template_kwargs, settings.tools, settings.fields) == ({"enable_thinking": False}, None, {})
    assert (described.template_kwargs, described.tools, described.fields) == ({}, [{"name": "f"}], {})


def test_calls_are_expected_in_place_of_the_text_beside_them_where_calls_are_compared(tmp_path: Path) -> None:
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": "Let me check.", "tool_calls": calls}
    rows = [
        {"prompt": [USER], "completion": [message]},
        {"messages": [USER, message]},
        {"messages": [USER, {**message, "tool_calls": []}]},
        {"messages": [USER, ANSWER]},
    ]
    file = write(tmp_path, *rows)
    assert [item.expected for item in read_items(file)] == ["Let me check."] * 3 + ["42"]
    expected = [item.expected for item in read_items(file, expects_calls=True)]
    assert [json.loads(each) for each in expected[:2]] == [calls, calls]
    assert expected[2:] == ["Let me check.", "42"]


def test_empty_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('\n{"prompt": "a\u2028b", "expected": 1}\n\n{"prompt": "b", "expected": 2}\n')
    assert [item.line for item in read_items(file)] == [2, 4]


def test_an_editors_mark_at_the_beginning_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "a", "expected": 1}, {"prompt": "b", "expected": 2})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [(item.prompt, item.line) for item in read_items(file)] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"expected": 1}, "field 'prompt': missing.*found 'expected'"),
        ({"prompt": "", "expected": 1}, "field 'prompt'"),
        ({"prompt": [], "expected": 1}, "field 'prompt'"),
        ({"prompt": [{"content": "x"}], "expected": 1}, "field 'prompt'.*role"),
        ({"prompt": [{"role": "user", "content": 3}], "expected": 1}, "field 'prompt'.*content"),
        ({"prompt": "x"}, "field 'expected': missing"),
        ({"prompt": [USER], "completion": [USER]}, "field 'completion'.*'user'"),
        ({"prompt": [USER], "completion": [ANSWER, ANSWER]}, "field 'completion'.*2 messages"),
        ({"messages": [ANSWER]}, "field 'messages': only one"),
        ({"messages": [USER, EMPTY]}, "field 'messages': the assistant's answer is empty"),
        ({"prompt": [USER], "completion": [EMPTY | {"tool_calls": None}]}, "field 'completion': the assistant's"),
        ({"prompt": "x", "expected": 1, "tools": "f"}, "field 'tools': not JSON"),
        ({"prompt": "x", "expected": 1, "tools": '{"name": "f"}'}, "field 'tools': expected a list"),
        ({"prompt": "x", "expected": 1, "tools": ["f"]}, "field 'tools': expected a list"),
        (
            {"prompt": "x", "expected": 1, "chat_template_kwargs": "x"},
            "field 'chat_template_kwargs': expected an object",
        ),
        ([1], "expected an object"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path, {"prompt": "x", "expected": 1}, row)
    with pytest.raises(UserError, match=rf"items\.jsonl, line 2.*{message}"):
        read_items(file)


def test_a_row_may_go_without_what_no_scorer_reads(tmp_path: Path) -> None:
    rows = [{"prompt": "x", **answer} for answer in ({}, {"expected": 1}, {"completion": "2"})]
    items = read_items(write(tmp_path, *rows), needs_expected=False)
    assert [item.expected for item in items] == [None, 1, "2"]


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"a": \xff}', "not UTF-8"), (b"{", "not JSON"), (b"\n", "no rows")]
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_items(file)
    with pytest.raises(UserError, match="dataset_name"):
        read_items(tmp_path / "missing.jsonl")


def test_a_field_of_texts(tmp_path: Path) -> None:
    (item,) = read_items(write(tmp_path, {"prompt": "x", "expected": 1, "one": "a", "two": ["a", "b"], "bad": [1]}))
    assert (item.texts("one"), item.texts("two")) == (["a"], ["a", "b"])
    for name in ("bad", "missing"):
        with pytest.raises(BadField, match=name):
            item.texts(name)
