from pathlib import Path

import pytest

from prefillshare.json_lines import lines_of


def test_lines_have_the_numbers_that_an_editor_shows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\r\n\n \t\n{"b": "\xe2\x80\xa8"}\n{"c": 3}')  # a separator that ends no line here
    assert [(number, line.strip()) for number, line in lines_of(file)] == [
        (1, b'{"a": 1}'),
        (4, b'{"b": "\xe2\x80\xa8"}'),
        (5, b'{"c": 3}'),
    ]


def test_the_mark_that_editors_begin_a_file_with_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for content, lines in ((b"\xef\xbb\xbf1\n2", [(1, b"1\n"), (2, b"2")]), (b"\xef\xbb\xbf\n2", [(2, b"2")])):
        file.write_bytes(content)
        assert list(lines_of(file)) == lines


def test_a_file_that_is_not_there_is_the_callers_to_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(lines_of(tmp_path / "rows.jsonl"))
