import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefillshare.cli import app
from prefillshare.errors import UserError
from prefillshare.evaluation import run
from prefillshare.evaluation.answers import Answer
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.items import Item
from prefillshare.evaluation.run import evaluate, read_selected
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.evaluation.systems import Measurement
from tests.training.tiny import save_base, tiny_model

ROWS = 10


class FakeSource:
    """Answers every item with its number; `weights` stands for what decides the answers."""

    def __init__(self, stop_after: int = 1000, weights: str = "1") -> None:
        self.asked: list[int] = []
        self.left, self.weights = stop_after, weights

    def depends_on(self, measurement: Measurement) -> dict[str, Any]:
        return {"weights": self.weights}

    def answers(self, measurement: Measurement, items: list[Item]) -> Iterator[Answer]:
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked.append(item.line)
            yield Answer(item.line, f"{item.line}", 0.1, False)


def write(folder: Path, rows: list[dict[str, Any]] | None = None) -> None:
    made = [{"prompt": f"item {n}", "expected": f"{n if n % 2 else 0}"} for n in range(1, ROWS + 1)]
    text = "".join(json.dumps(row) + "\n" for row in (made if rows is None else rows))
    (folder / "items.jsonl").write_text(text)


def config(folder: Path, **fields: Any) -> EvaluateConfig:
    values = {"dataset_name": folder / "items.jsonl", "output_dir": folder / "out", "scorer": "exact"}
    return EvaluateConfig(**{"model_name_or_path": folder / "base", **values, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def with_source(monkeypatch: pytest.MonkeyPatch, source: FakeSource) -> FakeSource:
    monkeypatch.setattr(run, "_source", lambda config, items, tell: source)
    return source


def test_every_item_is_answered_and_scored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_source(monkeypatch, FakeSource())
    report = evaluate(config(folder), show_progress=False)
    assert source.asked == list(range(1, ROWS + 1))
    assert report.systems["base"].verdicts == [bool(n % 2) for n in range(1, ROWS + 1)]
    assert json.loads((folder / "out" / "results.json").read_text())["systems"]["base"]["right"] == 5


def test_an_interrupted_run_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = with_source(monkeypatch, FakeSource())
    expected = evaluate(config(folder, output_dir=folder / "whole"), show_progress=False).as_dict()
    first = with_source(monkeypatch, FakeSource(stop_after=4))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(folder), show_progress=False)
    assert not (folder / "out" / "results.json").exists()
    second = with_source(monkeypatch, FakeSource())
    assert evaluate(config(folder), show_progress=False).as_dict() == expected
    assert first.asked + second.asked == whole.asked
    third = with_source(monkeypatch, FakeSource())
    evaluate(config(folder), show_progress=False)
    assert third.asked == []


@pytest.mark.parametrize("change", ["weights", "data", "max_new_tokens", "overwrite_output_dir"])
def test_answers_that_depend_on_something_else_are_asked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with_source(monkeypatch, FakeSource())
    evaluate(config(folder), show_progress=False)
    again = with_source(monkeypatch, FakeSource(weights="2" if change == "weights" else "1"))
    fields: dict[str, Any] = {"max_new_tokens": 3} if change == "max_new_tokens" else {}
    fields |= {"overwrite_output_dir": True} if change == "overwrite_output_dir" else {}
    if change == "data":
        write(folder, [{"prompt": f"other {n}", "expected": "0"} for n in range(ROWS)])
    evaluate(config(folder, **fields), show_progress=False)
    assert len(again.asked) == ROWS


def test_kept_answers_are_scored_by_the_scorer_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_source(monkeypatch, FakeSource())
    write(folder, [{"prompt": "x", "expected": "1.0"}])
    assert evaluate(config(folder), show_progress=False).systems["base"].verdicts == [False]
    again = with_source(monkeypatch, FakeSource())
    assert evaluate(config(folder, scorer="number"), show_progress=False).systems["base"].verdicts == [True]
    assert again.asked == []


def test_items_are_drawn_by_the_seed_and_kept_in_order(folder: Path) -> None:
    lines = [[item.line for item in read_selected(config(folder, items=5, seed=seed))] for seed in (0, 0, 1)]
    assert lines[0] == lines[1] == sorted(lines[0])
    assert lines[0] != lines[2]
    with pytest.raises(UserError, match="items: 11 is more than the 10 rows"):
        read_selected(config(folder, items=11))


def test_an_item_that_the_scorer_cannot_use_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_source", lambda config, items, tell: pytest.fail("too late"))
    write(folder, [{"prompt": "x", "expected": "1"}, {"prompt": "x", "expected": "one"}])
    with pytest.raises(UserError, match=r"items\.jsonl, line 2, field 'expected': no number in 'one'"):
        evaluate(config(folder, scorer="number"), show_progress=False)


@pytest.mark.parametrize(
    ("taken", "output", "message"),
    [
        ("out", "out", "out is a file; name a folder"),
        ("out", "out/sql", "cannot write in .*out/sql: Not a directory; name another folder"),
        ("out/answers", "out", "cannot write in .*out/answers: File exists; name another folder"),
    ],
)
def test_an_output_folder_that_cannot_be_is_named_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, taken: str, output: str, message: str
) -> None:
    monkeypatch.setattr(run, "_source", lambda config, items, tell: pytest.fail("too late"))
    (folder / taken).parent.mkdir(exist_ok=True)
    (folder / taken).write_text("")
    with pytest.raises(UserError, match=f"output_dir: .*{message}"):
        evaluate(config(folder, output_dir=folder / output), show_progress=False)


@pytest.mark.parametrize("unwritable", ["out", "answers"])
def test_an_output_folder_that_cannot_be_written_is_named_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, unwritable: str
) -> None:
    def temporary_file(dir: Path) -> BytesIO:  # in place of permissions, which root does not heed
        if dir.name == unwritable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return BytesIO()

    monkeypatch.setattr(run, "_source", lambda config, items, tell: pytest.fail("too late"))
    monkeypatch.setattr("tempfile.TemporaryFile", temporary_file)
    (folder / "out" / "answers").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"output_dir: cannot write in .*{unwritable}: Read-only.*; name another"):
        evaluate(config(folder), show_progress=False)


def test_making_the_output_folder_leaves_kept_answers_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "out" / "answers").mkdir(parents=True)
    (folder / "out" / "answers" / "kept.jsonl").write_text("{}")
    monkeypatch.setattr(run, "_source", lambda config, items, tell: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(folder), show_progress=False)
    assert [file.name for file in (folder / "out").rglob("*")] == ["answers", "kept.jsonl"]


def test_a_row_for_python_needs_nothing_but_prompt_and_tests(folder: Path) -> None:
    write(folder, [{"prompt": "Double it.", "tests": "assert double(1) == 2"}])
    (item,) = read_selected(config(folder, scorer="python"))
    assert item.fields == {"tests": "assert double(1) == 2"}
    with pytest.raises(UserError, match=r"line 1, field 'expected': missing"):
        read_selected(config(folder, scorer="number"))


def test_calls_with_text_beside_them_are_fit_for_the_scorer_of_calls(folder: Path) -> None:
    calls = [{"function": {"name": "f", "arguments": '{"x": 1}'}}]
    answer = {"role": "assistant", "content": "Let me check.", "tool_calls": calls}
    write(folder, [{"messages": [{"role": "user", "content": "How many?"}, answer]}])
    (item,) = read_selected(config(folder, scorer="call"))
    assert SCORERS["call"]("f(x=1)", item)
    (item,) = read_selected(config(folder, scorer="exact"))
    assert item.expected == "Let me check."


def test_a_report_keeps_thoughts_that_the_verdict_passes_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Thinks(FakeSource):
        def answers(self, measurement: Measurement, items: list[Item]) -> Iterator[Answer]:
            for answer in super().answers(measurement, items):
                yield replace(answer, text=f"<think>\n\n</think>\n\n{answer.text}")

    with_source(monkeypatch, Thinks())
    write(folder, [{"prompt": "x", "expected": "<think>One.</think>1"}])
    evaluate(config(folder), show_progress=False)
    (item,) = json.loads((folder / "out" / "results.json").read_text())["items"]
    assert item["expected"] == "<think>One.</think>1"
    assert item["answers"]["base"] == {"answer": "<think>\n\n</think>\n\n1", "right": True, "cut_off": False}


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.extras.is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"shares: .*matplotlib is not inst.*; pip install 'prefillshare\[evaluate\]'"):
        evaluate(config(folder, module=folder, shares=(0,)), show_progress=False)


def test_the_command_prints_the_table_and_where_the_files_are(folder: Path) -> None:
    save_base(folder / "base")
    save_base(folder / "full", tiny_model(1))
    (folder / "eval.yaml").write_text(
        "model_name_or_path: ./base\nfull_fine_tuning: ./full\ndataset_name: ./items.jsonl\nscorer: exact\n"
        "output_dir: ./out\nmax_new_tokens: 4\nshares: [0, 0.5, 1]\n"
    )
    arguments = ["evaluate", str(folder / "eval.yaml"), "items=3"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for part in ("full fine-tuning", "naive sharing", "50%", str(folder / "out" / "results.json"), "sweep.png"):
        assert part in shown.stdout
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["systems"]["base"]["items"] == 3


def test_ctrl_c_says_that_nothing_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_source(monkeypatch, FakeSource(stop_after=2))
    (folder / "eval.yaml").write_text(
        "model_name_or_path: ./base\ndataset_name: ./items.jsonl\nscorer: exact\noutput_dir: ./out\n"
    )
    shown = CliRunner().invoke(app, ["evaluate", str(folder / "eval.yaml")])
    assert shown.exit_code == 130
    assert "the same command goes on" in shown.stderr


def test_an_endpoint_is_scored_without_torch(folder: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from prefillshare.evaluation.config import EvaluateConfig\n"
        "from prefillshare.evaluation.run import evaluate\n"
        "evaluate(EvaluateConfig(dataset_name=sys.argv[1], output_dir=sys.argv[2], scorer='exact',\n"
        "    endpoint={'url': 'http://127.0.0.1:9/v1', 'model': 'm', 'retries': 0}), show_progress=False)\n"
    )
    arguments = [str(folder / "items.jsonl"), str(folder / "out")]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert "UserError: endpoint: http://127.0.0.1:9/v1" in result.stderr
