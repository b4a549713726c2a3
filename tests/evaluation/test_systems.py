from pathlib import Path
from typing import Any

from prefillshare.evaluation.config import EvaluateConfig
from prefillshare.evaluation.systems import Measurement, plan


def config(**fields: Any) -> EvaluateConfig:
    there = Path("x")
    return EvaluateConfig(dataset_name=there, output_dir=there, scorer="exact", **fields)


def test_nothing_is_measured_twice() -> None:
    x = Path("x")
    planned = plan(config(model_name_or_path=x, module=x, full_fine_tuning=x, shares=(1, 0, 0.5)))
    assert [each.label for each in planned] == [
        "decode module",
        "decode module, share 0",
        "decode module, share 0.5",
        "full fine-tuning",
        "naive sharing",
        "naive sharing, share 0.5",
        "base",
    ]
    assert len({each.file_name for each in planned}) == len(planned)


def test_only_what_is_named_is_measured() -> None:
    x = Path("x")
    assert [each.label for each in plan(config(model_name_or_path=x))] == ["base"]
    assert [each.label for each in plan(config(model_name_or_path=x, module=x))] == ["decode module", "base"]
    assert plan(config(endpoint={"url": "http://x", "model": "m"})) == [Measurement("endpoint", 1.0)]
