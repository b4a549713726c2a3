"""The metrics that docs and dashboard speak of are the metrics that there are."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import prefillshare
from prefillshare.router.app import create_app
from prefillshare.router_config import RouterConfig
from tests.router.fakes import FACTS

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "docs/grafana/prefillshare.json"
STATS = Path(prefillshare.__file__).parent / "engine/stats.py"
NAME = re.compile(r"\bprefillshare_[a-z0-9_]+")
SERIES = re.compile(r"_(?:bucket|sum|count)$")  # of a histogram


def exported_by_the_router() -> set[str]:
    with TestClient(create_app(RouterConfig(), {}, FACTS)) as client:
        text = client.get("/metrics").text
    names = re.findall(r"^# TYPE (\S+)", text, re.M)
    return {name for name in names if NAME.match(name) and not name.endswith("_created")}


def exported_by_workers() -> set[str]:
    return set(NAME.findall(ast.get_docstring(ast.parse(STATS.read_text())) or ""))


def named_in(text: str) -> set[str]:
    return {SERIES.sub("", name) for name in NAME.findall(text)}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def documents() -> str:
    return "\n".join(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))


def test_every_metric_of_the_router_is_documented() -> None:
    exported = exported_by_the_router()
    assert len(exported) > 15
    assert exported - named_in(documents()) == set()


@pytest.mark.parametrize("source", ["docs", "dashboard"])
def test_every_metric_that_is_named_exists(source: str) -> None:
    text = documents() if source == "docs" else "\n".join(expressions())
    named = named_in(text) - {"prefillshare_handoff_"}  # all of a worker's
    assert "prefillshare_requests_total" in named
    assert named - exported_by_the_router() - exported_by_workers() == set()


def test_the_dashboard_shows_every_metric_of_a_worker() -> None:
    assert exported_by_workers() - named_in("\n".join(expressions())) <= {"prefillshare_handoff_reused_blocks_total"}


def test_vllm_has_the_metrics_that_the_dashboard_takes_from_it() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vLLM's source")
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    named = set(re.findall(r"\bvllm:[a-z0-9_]+", "\n".join(expressions())))
    assert len(named) >= 5
    for name in named:
        assert f'"{name.removesuffix("_total")}"' in source


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
