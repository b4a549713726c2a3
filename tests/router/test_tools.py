from collections.abc import Callable
from typing import Any

import pytest

from tests.router.conftest import Cluster

TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "f"}}]}
NAMED = {"type": "function", "function": {"name": "f"}}
CHOICES: list[dict[str, Any]] = [{"tool_choice": choice} for choice in ("auto", "required", NAMED, None)]


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """`sql` has a parser, `json` has none."""
    return start_cluster(calls_tools=("sql",))


def ask(cluster: Cluster, model: str, **fields: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return cluster.http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("choice", [{}, *CHOICES], ids=str)
def test_tools_are_refused_where_no_call_would_be_found(cluster: Cluster, choice: dict[str, Any]) -> None:
    refused = ask(cluster, "json", **TOOLS, **choice)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "no_tool_call_parser")
    assert "`tool_call_parser`" in error["message"]
    assert cluster.worker_bodies() == 0


@pytest.mark.parametrize("fields", [TOOLS | {"tool_choice": "none"}, {"tools": None}, {}], ids=str)
def test_a_model_without_a_parser_may_still_read_tools(cluster: Cluster, fields: dict[str, Any]) -> None:
    assert ask(cluster, "json", **fields).status_code == 200


@pytest.mark.parametrize("choice", [{}, *CHOICES, {"tool_choice": "none"}], ids=str)
def test_the_choice_is_for_the_decode_leg_alone(cluster: Cluster, choice: dict[str, Any]) -> None:
    """The base reads the tools, and the same prompt for every choice."""
    assert ask(cluster, "sql", **TOOLS, **choice).status_code == 200
    (prefill,), (decode,) = cluster.prefill[0].bodies, cluster.decode["sql"][0].bodies
    assert (prefill["tools"], prefill["tool_choice"]) == (TOOLS["tools"], "none")
    assert decode["tools"] == TOOLS["tools"]
    assert {field: decode[field] for field in choice} == choice
