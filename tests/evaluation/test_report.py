import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefillshare.evaluation.answers import Answer
from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.items import Item
from prefillshare.evaluation.report import Outcome, Report
from prefillshare.evaluation.systems import plan

N = 20
RIGHT = {  # of 20, by label
    "base": 2,
    "full fine-tuning": 19,
    "naive sharing": 6,
    "naive sharing, share 0.5": 11,
    "decode module": 18,
    "decode module, share 0.5": 17,
    "decode module, share 0": 16,
}


def report(folder: Path, **fields: Any) -> Report:
    x = folder / "x"
    config = EvaluateConfig(
        dataset_name=folder / "held-out.jsonl",
        output_dir=folder / "results",
        scorer="exact",
        **{"model_name_or_path": x, "module": x, "full_fine_tuning": x, "shares": (1, 0, 0.5), **fields},
    )
    items = [Item("q", f"answer {n}", line=n + 1) for n in range(N)]
    outcomes = []
    for measurement in plan(config):
        right = RIGHT.get(measurement.label, 5)
        answers = [Answer(n + 1, f"answer {n}" if n < right else "?", 0.5, n == 0) for n in range(N)]
        outcomes.append(Outcome(measurement, {"data": "sha256:1"}, answers, [n < right for n in range(N)]))
    return Report(config, items, outcomes, {"python": "3"})


def test_the_files_hold_the_figures_and_every_answer(tmp_path: Path) -> None:
    made = report(tmp_path)
    made.write()
    result = json.loads(made.json_file.read_text())
    assert {name: each["right"] for name, each in result["systems"].items()} == {
        name: RIGHT[name] for name in ("base", "full fine-tuning", "naive sharing", "decode module")
    }
    assert result["systems"]["decode module"]["accuracy"] == {
        "estimate": 0.9,
        "low": pytest.approx(0.6990, abs=1e-4),
        "high": pytest.approx(0.9721, abs=1e-4),
    }
    assert (result["systems"]["base"]["seconds"], result["systems"]["base"]["cut_off"]) == (10, 1)
    first = result["differences"][0]
    assert (first["first"], first["second"], first["only_first"], first["only_second"]) == (
        "decode module",
        "full fine-tuning",
        0,
        1,
    )
    assert first["difference"]["estimate"] == pytest.approx(-0.05)
    assert [(point["share"], point["right"]) for point in result["sweep"]["naive sharing"]] == [
        (0, 19),
        (0.5, 11),
        (1, 6),
    ]
    assert [(point["share"], point["right"]) for point in result["sweep"]["decode module"]] == [
        (0, 16),
        (0.5, 17),
        (1, 18),
    ]
    item = result["items"][17]
    assert (item["line"], item["expected"]) == (18, "answer 17")
    assert item["answers"]["decode module"] == {"answer": "answer 17", "right": True, "cut_off": False}
    assert item["answers"]["naive sharing, share 0.5"]["right"] is False
    assert str(tmp_path) not in made.json_file.read_text() + made.markdown_file.read_text()


def test_the_tables_and_the_plot(tmp_path: Path) -> None:
    made = report(tmp_path)
    made.write()
    text = made.markdown_file.read_text()
    assert "| decode module | 18 | 0.900 | 0.699 to 0.972 | 1 |" in text
    assert "| decode module - full fine-tuning | -5.0 |" in text
    assert "| 50% | 0.550 (0.342 to 0.742) | 0.850 (0.640 to 0.948) |" in text
    assert "(sweep.png)" in text
    assert made.plot_file is not None
    assert made.plot_file.read_bytes().startswith(b"\x89PNG")
    console = Console(width=120, file=StringIO())
    console.print(made.as_table())
    assert "naive sharing" in console.file.getvalue()


def test_without_a_sweep_there_is_no_plot(tmp_path: Path) -> None:
    made = report(tmp_path, shares=(), full_fine_tuning=None)
    made.write()
    assert made.plot_file is None
    assert list(made.systems) == ["base", "decode module"]
    assert made.summary()["differences"] == []
    assert sorted(file.name for file in made.config.output_dir.iterdir()) == ["results.json", "results.md"]


def test_an_endpoint_is_named_by_its_model(tmp_path: Path) -> None:
    made = report(
        tmp_path,
        model_name_or_path=None,
        module=None,
        full_fine_tuning=None,
        shares=(),
        endpoint={"url": "http://x", "model": "sql"},
    )
    assert made.summary()["systems"]["sql"]["right"] == 5
    assert "served" in made.as_markdown()
