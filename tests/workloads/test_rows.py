import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from prefillshare.errors import UserError
from prefillshare.workloads.rows import read_rows, write_rows


class Row(BaseModel):
    name: str
    sizes: tuple[int, ...] = ()


def written(folder: Path, content: bytes) -> Path:
    file = folder / "rows.jsonl"
    file.write_bytes(content)
    return file


def test_rows_come_with_their_lines(tmp_path: Path) -> None:
    file = written(tmp_path, b'\xef\xbb\xbf{"name": "a"}\n\n{"name": "b", "sizes": [1]}\n')
    assert list(read_rows(file, Row)) == [(1, Row(name="a")), (3, Row(name="b", sizes=(1,)))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "a"}\n{"name": 3}\n', r"rows\.jsonl, line 2: field name: .*found 3"),
        (b'{"name": "a", "sizes": [1, "x"]}', r"line 1: field sizes\.1: .*found 'x'"),
        (b'{"sizes": []}', "line 1: field name: Field required$"),
        (b"{", "line 1: Invalid JSON"),
        (b'{"name": "\xff"}', "line 1: not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_by_line_and_field(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_rows(written(tmp_path, content), Row))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read it"):
        list(read_rows(tmp_path / "none.jsonl", Row))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "rows.jsonl"
    write_rows(file, iter([{"name": "ä"}, {"name": "b"}]))
    assert [row.name for _, row in read_rows(file, Row)] == ["ä", "b"]


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "rows.jsonl"):
        with pytest.raises(UserError, match=f"^{place}: cannot write it: .*; give another file"):
            write_rows(place, iter([{"name": "a"}]))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_links_are_followed_and_pipes_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "rows.jsonl")
    write_rows(tmp_path / "link", iter([{"name": "a"}]))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "rows.jsonl").read_text() == '{"name": "a"}\n'
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_rows(tmp_path / "pipe", iter([{"name": "b"}]))
    assert os.read(reader, 100) == b'{"name": "b"}\n'
    os.close(reader)


def test_what_has_been_written_to_a_redirected_output_stays(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"name": "a"}\n')
    with (tmp_path / "rows.jsonl").open("a") as out:
        write_rows(Path(f"/dev/fd/{out.fileno()}"), iter([{"name": "b"}]))
    assert [row.name for _, row in read_rows(tmp_path / "rows.jsonl", Row)] == ["a", "b"]
