import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from prefillshare.errors import UserError
from prefillshare.training.sources import Row, digest, open_source, require_splits

MESSAGES = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}]
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}
OTHER_CALL = {"function": {"name": "g", "arguments": {"b": "x"}}}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [CALL]}]},
    {"messages": MESSAGES},
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [OTHER_CALL]}]},
]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def read(source: Path, split: str = "train") -> list[Row]:
    return [row for part in open_source(source, split) for row in part.rows()]


def contents(source: Path, split: str = "train") -> list[Any]:
    return [row.content for row in read(source, split)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.ndjson"])
def test_json_lines_are_rows_by_their_line(tmp_path: Path, name: str) -> None:
    file = write_jsonl(tmp_path / name, ROWS)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert contents(file) == ROWS
    assert [row.where for row in read(file)] == [f"{file}, line {number}" for number in (1, 3, 5)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "not text"),
        (b"[1]", "expected an object, found list"),
    ],
)
def test_a_line_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(line + b'\n{"prompt": "\\u00e9"}\n')
    bad, good = contents(file)
    assert str(bad).startswith(problem)
    assert good == {"prompt": "é"}


def test_a_table_gives_rows_as_they_were_before(tmp_path: Path) -> None:
    """In the table every message has all fields, and every call all arguments."""
    file = write_parquet(tmp_path / "rows.parquet", [row | {"weight": 1, "tools": None} for row in ROWS])
    assert contents(file) == ROWS
    assert [row.where for row in read(file)] == [f"{file}, row {number}" for number in (1, 2, 3)]


def test_values_that_datasets_keeps_as_json_are_decoded(tmp_path: Path) -> None:
    rows = [{"messages": MESSAGES, "tools": [{"a": None}, {"b": [1]}]}]
    saved = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in str(saved.features)
    saved.to_parquet(str(tmp_path / "rows.parquet"))
    saved.save_to_disk(str(tmp_path / "saved"))
    assert contents(tmp_path / "rows.parquet") == contents(tmp_path / "saved") == rows


def test_a_string_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    prompts = pyarrow.array([b"good", b"\xff", b"fine"]).cast(pyarrow.binary())
    broken = pyarrow.StringArray.from_buffers(3, prompts.buffers()[1], prompts.buffers()[2])
    table = pyarrow.table({"prompt": broken, "completion": ["x"] * 3})
    parquet.write_table(table, tmp_path / "rows.parquet")
    good, bad, fine = contents(tmp_path / "rows.parquet")
    assert (good["prompt"], fine["prompt"]) == ("good", "fine")
    assert bad.startswith("not UTF-8")


def test_saved_data_sets_and_their_splits(tmp_path: Path) -> None:
    train, test = (datasets.Dataset.from_list([{"messages": MESSAGES, "id": n}] * n) for n in (2, 3))
    train.select([1]).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "both"))
    assert contents(tmp_path / "one") == [{"messages": MESSAGES}]
    assert read(tmp_path / "one")[0].where == f"{tmp_path / 'one'}, row 1"
    assert len(read(tmp_path / "both")) == 2
    assert read(tmp_path / "both", "test")[2].where == f"{tmp_path / 'both'}, split 'test', row 3"
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        open_source(tmp_path / "both", "dev")


def test_files_in_a_folder_belong_to_the_split_in_their_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS[:1])
    write_parquet(tmp_path / "test.parquet", ROWS[:2])
    (tmp_path / "README.md").write_text("about")
    assert contents(tmp_path) == ROWS[:1]
    assert read(tmp_path)[0].where == f"{tmp_path / 'train.jsonl'}, line 1"
    assert len(contents(tmp_path, "test")) == 2
    with pytest.raises(UserError, match="no split 'validation'; it has train, test"):
        open_source(tmp_path, "validation")


@pytest.mark.parametrize("folder", ["", "data"])
def test_shards_are_read_in_order(tmp_path: Path, folder: str) -> None:
    for number, row in enumerate(ROWS[:2]):
        write_parquet(tmp_path / folder / f"train-0000{number}-of-00002.parquet", [row])
    assert contents(tmp_path) == ROWS[:2]


def test_files_without_a_split_in_their_name_are_all_for_training(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "a.jsonl", ROWS[1:])
    for name in ("about.md", "LICENSE", "prepare.py", "dataset_infos.json"):
        (tmp_path / name).write_text("{}")
    assert contents(tmp_path) == [*ROWS[1:], ROWS[0]]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "one" / "train.jsonl", ROWS)
    same = write_jsonl(tmp_path / "two" / "train.jsonl", ROWS)
    assert digest(file) == digest(same)
    assert digest(file.parent) == digest(same.parent)
    write_jsonl(same.parent / "test.jsonl", ROWS)
    assert digest(file.parent) == digest(same.parent) != digest(same.parent, "test")
    same.write_text(same.read_text() + "\n")
    assert digest(file) != digest(same)
    assert digest(file.parent) != digest(same.parent)
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert digest(tmp_path / "saved").startswith("sha256:")


@pytest.mark.parametrize("kind", ["saved", "splits", "files"])
def test_a_folder_is_the_same_by_whatever_way_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "data" / "rows"
    saved = datasets.Dataset.from_list([{"messages": MESSAGES}])
    match kind:
        case "saved":
            saved.save_to_disk(str(folder))
        case "splits":
            datasets.DatasetDict({"train": saved}).save_to_disk(str(folder))
        case "files":
            write_jsonl(folder / "data" / "train.jsonl", [{"messages": MESSAGES}])
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "to_data").symlink_to(tmp_path / "data")
    (tmp_path / "to_b").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path / "a")
    expected = digest(folder)
    for way in (
        tmp_path / "a" / ".." / "data" / "rows",
        tmp_path / "to_data" / "rows",
        tmp_path / "to_b" / ".." / ".." / "data" / "rows",  # not what is left when ".." is taken out as text
        Path("..") / "data" / "rows",
    ):
        assert contents(way) == [{"messages": MESSAGES}]
        assert digest(way) == expected, way


def test_a_source_without_splits_is_known(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "saved"))
    for source in (write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "saved"):
        with pytest.raises(UserError, match=rf"dataset_name: {source} has no splits.* a train and a test file"):
            require_splits(source)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    require_splits(tmp_path / "splits")
    require_splits(write_jsonl(tmp_path / "files" / "train.jsonl", ROWS).parent)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.csv", b"a,b\n", r"expected a file that ends in .jsonl, .json, .ndjson or .parquet"),
        ("rows.parquet", b"PAR1 no", "cannot read it"),
        ("folder/train.csv", b"a,b\n", r"no .* file for split 'train', only train.csv"),
        ("folder/state.json", b"{", "cannot read it"),
    ],
)
def test_what_is_not_data_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        open_source(file if file.parent == tmp_path else file.parent, "train")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trl-lib/x: cannot read it: no such file.*save_to_disk"):
        open_source(tmp_path / "trl-lib/x", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no data files"):
        open_source(tmp_path / "empty", "train")


def test_a_table_with_other_columns_is_refused_at_once(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "rows.parquet", [{"question": "x", "prompt": "y"}])
    with pytest.raises(UserError, match="expected columns 'prompt' and 'completion', or 'messages', found 'question'"):
        open_source(file, "train")
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"saved: expected columns .* found 'text'"):
        open_source(tmp_path / "saved", "train")
