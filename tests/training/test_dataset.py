import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from prefillshare.errors import UserError
from prefillshare.training import dataset
from prefillshare.training.conversation import read_row
from prefillshare.training.dataset import read_examples
from prefillshare.training.sources import digest
from tests.training.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
SYSTEM = {"role": "system", "content": "You count."}
USER = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "Three."}
GOOD = {"messages": [USER, ANSWER]}
TWO = {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]}


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_all_rows_become_examples(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, "", {"prompt": "2 + 1 =", "completion": " 3"}, TWO)
    data = read_examples(file, TOKENIZER)
    assert list(data.examples) == [*read_row(GOOD, TOKENIZER), *read_examples(file, TOKENIZER).examples[1:]]
    assert (data.rows, len(data.examples), data.skipped, data.digest) == (3, 3, [], digest(file))


def test_instructions_behind_the_context_make_an_example_of_each_turn(tmp_path: Path) -> None:
    data = read_examples(write(tmp_path, TWO), TOKENIZER, instructions="behind_context")
    assert list(data.examples) == read_row(TWO, TOKENIZER, "behind_context")
    assert (data.rows, len(data.examples)) == (1, 2)


def test_a_split_of_a_folder_is_read(tmp_path: Path) -> None:
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_list([GOOD] * n) for name, n in (("train", 2), ("test", 1))}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    write(tmp_path / "files", GOOD, GOOD, name="train.jsonl")
    for source in (tmp_path / "saved", tmp_path / "files"):
        assert list(read_examples(source, TOKENIZER).examples) == read_row(GOOD, TOKENIZER) * 2
    assert read_examples(tmp_path / "saved", TOKENIZER, split="test").rows == 1


def test_rows_longer_than_the_limit_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "abcd", "completion": "ef"})
    assert read_examples(file, TOKENIZER, max_length=7).rows == 1
    with pytest.raises(UserError, match="line 1: the row has 7 tokens but max_length is 6"):
        read_examples(file, TOKENIZER, max_length=6)
    longest = max(len(example.ids) for example in read_row(TWO, TOKENIZER, "behind_context"))
    with pytest.raises(UserError, match=f"has {longest} tokens"):
        read_examples(write(tmp_path, TWO), TOKENIZER, max_length=longest - 1, instructions="behind_context")


def test_all_rows_that_cannot_be_used_are_reported_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, "{", {"messages": [USER]}, {"text": "x"}, GOOD, {"prompt": "x", "completion": ""})
    with pytest.raises(UserError) as caught:
        read_examples(file, TOKENIZER)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"{file}: 4 of 6 rows cannot be used; ")
    assert "skip_invalid=true" in first
    assert [line.split(": ")[:2] for line in lines] == [
        [f"  {file}, line 2", "not JSON"],
        [f"  {file}, line 3", "field 'messages'"],
        [f"  {file}, line 4", "field 'prompt'"],
        [f"  {file}, line 6", "field 'completion'"],
    ]
    assert "found 'text'" in lines[2]


def test_a_long_report_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_examples(write(tmp_path, *["["] * 23), TOKENIZER)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert "line 20" in lines[20]
    assert lines[21] == "  and 3 more"


def test_rows_that_cannot_be_used_may_be_skipped_and_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, "{", GOOD, {"messages": [USER]})
    data = read_examples(file, TOKENIZER, skip_invalid=True)
    assert (data.rows, len(data.examples)) == (2, 2)
    assert [skipped.where for skipped in data.skipped] == [f"{file}, line 2", f"{file}, line 4"]
    assert data.skipped[1].problem == "field 'messages': no assistant turn, so nothing to train on"


def test_without_a_row_to_train_on_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        read_examples(write(tmp_path, ""), TOKENIZER)
    with pytest.raises(UserError, match=r"2 of 2 rows cannot be used; correct them\n.*line 1: not JSON"):
        read_examples(write(tmp_path, "{", "{"), TOKENIZER, skip_invalid=True)


@pytest.mark.parametrize(("slow_s", "shown", "expected"), [(0.0, True, True), (0.0, False, False), (60.0, True, False)])
def test_a_bar_shows_when_it_takes_long(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slow_s: float,
    shown: bool,
    expected: bool,
) -> None:
    monkeypatch.setattr(dataset, "_SLOW_S", slow_s)
    read_examples(write(tmp_path, GOOD, GOOD), TOKENIZER, show_progress=shown)
    assert ("2/2" in capsys.readouterr().err) is expected
