from pathlib import Path

import pytest
from pydantic import ValidationError

from prefillshare.config import load_deployment
from prefillshare.errors import UserError

MINIMAL = """
base: {path: base}
modules:
  - {name: sql, path: modules/sql}
  - {name: json, path: /elsewhere/json, decode_workers: 2}
"""


def load(tmp_path: Path, text: str):
    file = tmp_path / "deployment.yaml"
    file.write_text(text)
    return load_deployment(file)


def test_paths_start_at_the_file_and_defaults_are_filled_in(tmp_path: Path) -> None:
    deployment = load(tmp_path, MINIMAL)
    assert deployment.base.path == tmp_path / "base"
    assert deployment.base.served_name == "base"
    assert [module.path for module in deployment.modules] == [
        tmp_path / "modules/sql",
        Path("/elsewhere/json"),
    ]
    assert deployment.modules[1].decode_workers == 2
    assert deployment.router.host == deployment.workers.host == "127.0.0.1"


def test_the_tree_is_frozen(tmp_path: Path) -> None:
    deployment = load(tmp_path, MINIMAL)
    with pytest.raises(ValidationError):
        deployment.router.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINIMAL + "routers: {}", "routers: Extra inputs"),
        (MINIMAL + "router: {port: 80}", r"router\.port: .*1024.*found 80"),
        (MINIMAL + "workers: {block_size: 100}", r"workers\.block_size: .*32.*found 100"),
        (MINIMAL + "workers: {dtype: int4}", r"workers\.dtype: .*'auto'.*found 'int4'"),
        ("base: {path: base}\nmodules: []", "modules: .*at least 1"),
        ("modules: [{name: a, path: a}]", "base: Field required"),
        ("base: {path: b}\nmodules: [{name: x, path: a}, {name: x, path: c}]", "'x' is used twice"),
        ("base: {path: x}\nmodules: [{name: x, path: a}]", "'x' is used twice"),
        ("base: {path: x}\nmodules: [{name: 'a b', path: a}]", r"modules\.0\.name"),
        ("- a", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_by_field_and_value(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot read"):
        load_deployment(tmp_path / "nothing.yaml")
