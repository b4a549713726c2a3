from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.evaluation.config import load_evaluate_config

LOCAL = """
model_name_or_path: ./base
module: ./modules/sql
dataset_name: ./held-out.jsonl
scorer: sql
output_dir: ./results
"""


def write(tmp_path: Path, text: str = LOCAL) -> Path:
    file = tmp_path / "eval.yaml"
    file.write_text(text)
    return file


def test_paths_start_at_the_file_and_those_of_overrides_here(tmp_path: Path) -> None:
    config = load_evaluate_config(write(tmp_path), ["output_dir=there", "items=3", "shares=[0, .5]"])
    assert config.model_name_or_path == tmp_path / "base"
    assert config.output_dir == Path("there").absolute()
    assert (config.items, config.shares, config.dtype) == (3, (0, 0.5), "float32")


def test_an_endpoint_in_place_of_weights(tmp_path: Path) -> None:
    text = "dataset_name: a.jsonl\nscorer: json\noutput_dir: r\n"
    config = load_evaluate_config(
        write(tmp_path, text), ["endpoint.url=http://localhost:8000/v1", "endpoint.model=sql", "endpoint.concurrency=2"]
    )
    assert config.endpoint is not None
    assert (config.endpoint.url, config.endpoint.model, config.endpoint.concurrency) == (
        "http://localhost:8000/v1",
        "sql",
        2,
    )


ENDPOINT = "endpoint={url: http://x/v1, model: m}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scorer=rouge"], "scorer.*exact, json, number, sql, call, python.*rouge"),
        (["items=0"], "items.*found 0"),
        (["colour=red"], "colour"),
        (["shares=[0, 1.5]"], r"shares\.1.*1.5"),
        (["shares=[0.5, 0.5]"], "shares.*twice"),
        (["module=null", "shares=[0]"], "shares"),
        ([ENDPOINT], "either model_name_or_path"),
        (["model_name_or_path", "items=3"], "expected key=value"),
        (["items=[3"], "not valid YAML"),
        (["scorer.name=x"], "not a section"),
        (["endpoint.url=ftp://x"], r"endpoint\.url"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_evaluate_config(write(tmp_path), overrides)


def test_weights_and_an_endpoint_do_not_mix(tmp_path: Path) -> None:
    file = write(tmp_path, LOCAL.replace("model_name_or_path: ./base", "").replace("module: ./modules/sql", ""))
    load_evaluate_config(file, [ENDPOINT])
    for override in ("module=x", "full_fine_tuning=x", "shares=[1]"):
        with pytest.raises(UserError, match=override.split("=")[0]):
            load_evaluate_config(file, [ENDPOINT, override])
    with pytest.raises(UserError, match="either model_name_or_path"):
        load_evaluate_config(file)
