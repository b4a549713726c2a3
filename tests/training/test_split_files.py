"""Which files of a folder are a split's. What is read of them: test_sources.py."""

import json
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.training.sources import digest
from prefillshare.training.split_files import files_of_split


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"prompt": name, "completion": "x"}) + "\n")
    return folder


def names_of(folder: Path, split: str = "train") -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files_of_split(folder, split)]


def card(folder: Path, configs: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# Rows\n")


@pytest.mark.parametrize(
    "other",
    ["train-b.json", "train-c.jsonl.gz", "train-d.csv", "train-e.JSONL", "train-f.arrow", "train/g.tsv"],
)
def test_rows_that_would_be_left_out_are_named(tmp_path: Path, other: str) -> None:
    folder_with(tmp_path, "train-a.jsonl" if "/" not in other else "train/a.jsonl", "test.jsonl", other)
    with pytest.raises(UserError, match=rf"{tmp_path}: split 'train' also has {other}, which .*; convert .*, or move"):
        files_of_split(tmp_path, "train")
    if "/" not in other:
        assert names_of(tmp_path, "test") == ["test.jsonl"]


def test_rows_beside_files_without_a_split_in_their_name_are_named_too(tmp_path: Path) -> None:
    folder_with(tmp_path, "a.jsonl", "b.jsonl", "about.json", "more/c.csv")
    with pytest.raises(UserError, match=r"split 'train' also has about\.json, more/c\.csv, which"):
        files_of_split(tmp_path, "train")


def test_a_json_file_is_data_where_there_is_no_other(tmp_path: Path) -> None:
    assert names_of(folder_with(tmp_path, "train-b.json", "train-a.json")) == ["train-a.json", "train-b.json"]


def test_splits_are_those_of_the_readme(tmp_path: Path) -> None:
    folder_with(tmp_path, "sft.jsonl", "heldout.jsonl", "more/part-0.jsonl", "more/part-1.jsonl", "notes.csv")
    assert names_of(folder_with(tmp_path / "plain", "sft.jsonl", "heldout.jsonl")) == ["heldout.jsonl", "sft.jsonl"]
    card(
        tmp_path,
        "- config_name: default\n  data_files:\n  - {split: train, path: [sft.jsonl, more/*]}\n"
        "  - {split: test, path: heldout.jsonl}\n",
    )
    assert names_of(tmp_path) == ["more/part-0.jsonl", "more/part-1.jsonl", "sft.jsonl"]
    assert names_of(tmp_path, "test") == ["heldout.jsonl"]
    assert digest(tmp_path, "test") != digest(tmp_path)
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        files_of_split(tmp_path, "dev")


def test_a_readme_may_name_a_folder_or_one_split(tmp_path: Path) -> None:
    folder_with(tmp_path, "one/train.jsonl", "one/test.jsonl", "two/train.jsonl")
    card(tmp_path, "- {config_name: first, data_dir: one}\n")
    assert (names_of(tmp_path), names_of(tmp_path, "test")) == (["one/train.jsonl"], ["one/test.jsonl"])
    card(tmp_path, '- {config_name: first, data_files: "two/*"}\n')
    assert names_of(tmp_path) == ["two/train.jsonl"]
    card(tmp_path, "- {config_name: a, data_dir: one}\n- {config_name: b, data_dir: two, default: true}\n")
    assert names_of(tmp_path) == ["two/train.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        b"# Rows\n",
        b"---\nlicense: mit\n---\n# Rows\n",
        b"---\nlicense: mit\n---\nconfigs: are explained below\n",
        b"---\nunfinished",
        b"---\n\tno YAML: [\n---\n",
        b"---\nA rule, and then text.\n---\n",
        b"---\nlicense: mit\n---\nR\xe4der\n",
        b"",
        b"\xff",
    ],
)
def test_a_readme_that_says_nothing_of_files_changes_nothing(tmp_path: Path, text: bytes) -> None:
    folder_with(tmp_path, "train.jsonl", "test.jsonl")
    (tmp_path / "README.md").write_bytes(text)
    assert names_of(tmp_path) == ["train.jsonl"]


@pytest.mark.parametrize(
    ("configs", "problem"),
    [
        ("- {config_name: a, data_dir: one}\n- {config_name: b, data_dir: two}\n", "several configs, a, b, and none"),
        ("- config_name: a\n  data_files: {train: sft.jsonl, test: heldout.jsonl}\n", "Expected data_files in YAML"),
        ("- config_name: a\n  data_files: [{split: train, path: gone.jsonl}]\n", "gone.jsonl, and there is none"),
        ("- {config_name: a, data_files: 'https://example.org/x.jsonl'}\n", "https://.*, and only files of the folder"),
        ("- {config_name: a, data_files: /etc/hosts}\n", "/etc/hosts, and only files of the folder"),
        ("- {config_name: a, data_dir: ../..}\n", r"\.\./\.\., and only files of the folder"),
        ("- {config_name: a, data_files: [{split: train, path: sft.csv}]}\n", "split 'train', only sft.csv; convert"),
        ("- [\n", "README.md: "),
    ],
)
def test_a_readme_that_cannot_be_followed_is_refused(tmp_path: Path, configs: str, problem: str) -> None:
    folder_with(tmp_path, "sft.jsonl", "heldout.jsonl", "one/train.jsonl", "sft.csv")
    card(tmp_path, configs)
    with pytest.raises(UserError, match=problem):
        files_of_split(tmp_path, "train")
