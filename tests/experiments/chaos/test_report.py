from typing import Any

from experiments.chaos.report import summary, table
from experiments.chaos.run import Found


def call(verdict: str, seconds: float = 1.0, code: str = "", tokens: int = 3) -> dict[str, Any]:
    return {"verdict": verdict, "seconds": seconds, "code": code, "tokens": tokens}


def found(*calls: dict[str, Any], **facts: Any) -> Found:
    strikes = [
        {"event": "kill", "part": "all"},
        {"event": "stop", "part": "engine"},
        {"event": "skipped", "part": "all"},
    ]
    return Found(list(calls), strikes, recovered=True, served_after=True, **facts)


def test_a_run_in_figures_and_as_a_table() -> None:
    served = [call("served", float(n)) for n in range(1, 101)]
    run = found(
        *served,
        call("failed", 7.0, "worker_lost", 2),
        call("failed", 8.0, "kv_lost", 0),
        retries={"prefill worker_lost": 4},
    )
    result = summary(run, seed=3, minutes=20.0, environment={})
    assert result["clean"]
    assert result["calls"] == {"served": 100, "failed": 2, "left": 0, "wrong": 0, "undocumented": 0, "hung": 0}
    assert result["errors"] == {"worker_lost in a stream": 1, "kv_lost": 1}
    assert result["seconds"]["served"] == {"median": 51.0, "p99": 100.0, "longest": 100.0}
    assert (result["strikes"], result["skipped_strikes"]) == ({"kill all": 1, "stop engine": 1}, 1)
    text = table(result)
    assert "| workers killed (all of one, its server, its engine) | 1, 0, 0 |" in text
    assert "| failed with a documented error | 2: 1 kv_lost, 1 worker_lost in a stream |" in text
    assert "| yes, yes, yes |" in text


def test_one_finding_of_any_kind_spoils_a_run() -> None:
    assert found(call("served"), call("left")).clean
    for verdict in ("wrong", "undocumented", "hung"):
        assert not found(call("served"), call(verdict)).clean
    assert not found(call("served"), left_in_pools={"prefill-0": 0.1}).clean
    assert not Found([call("served")], recovered=True).clean
    assert not Found([call("served")], served_after=True).clean
