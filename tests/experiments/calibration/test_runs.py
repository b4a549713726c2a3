"""A run that was made by the simulator is predicted by it exactly; one that was slower is not."""

from pathlib import Path
from typing import Any

import pytest

from experiments.calibration.report import ratios, table
from experiments.calibration.runs import FIGURES, _template_tokens
from prefillshare.workloads.session import Workload
from tests.experiments.calibration.made import COSTS, made_up, played_by_simulator


@pytest.mark.parametrize("system", ["shared", "shared-lora", "per-model", "colocated"])
def test_what_the_simulator_made_it_predicts(tmp_path: Path, system: str) -> None:
    found = made_up(tmp_path, system)
    for name in FIGURES:
        assert found.simulated[name] == pytest.approx(found.measured[name], rel=1e-3), name


@pytest.mark.parametrize(("system", "missed"), [("shared", False), ("shared-lora", True)])
def test_adapters_cost_what_they_do_where_there_are_any(tmp_path: Path, system: str, missed: bool) -> None:
    without = {name: value for name, value in COSTS.items() if name != "adapter_decode_cost"}
    found = made_up(tmp_path, system, predicted_by=without)
    error = found.simulated["latency_p50_s"] / found.measured["latency_p50_s"] - 1
    assert (error < -0.15) == missed
    assert (abs(error) < 1e-3) == (not missed)


@pytest.mark.parametrize(("facts", "turn_s"), [({}, 0.0), ({"turn_s": 5.0}, 5.0)])
def test_models_take_turns_in_the_simulation_of_a_run_in_which_they_did(
    tmp_path: Path, facts: dict[str, float], turn_s: float
) -> None:
    """Runs that do not say so are from before there were turns."""
    flow = played_by_simulator(tmp_path, "shared", **facts).measured.flow
    assert flow is not None
    assert flow.turn_s == turn_s


def test_sessions_that_were_cut_off_are_not_left_out(tmp_path: Path) -> None:
    whole = made_up(tmp_path, "shared")
    limit_s = 0.4 * whole.measured["session_p95_s"]
    cut = made_up(tmp_path, "shared", limit_s=limit_s)
    assert list(cut.at_least) == ["measured", "simulated"]
    assert cut.simulated["session_p95_s"] == pytest.approx(cut.measured["session_p95_s"], rel=1e-3)
    assert cut.measured["session_p95_s"] == pytest.approx(limit_s)
    assert table([cut]).count(f">= {limit_s:.3g}") == 2
    other = made_up(tmp_path, "per-model", slower=2.0)
    assert [ratio["figure"] for ratio in ratios([cut, other])] == ["calls_per_s"]
    assert [ratio["figure"] for ratio in ratios([whole, other])] == ["session_p95_s", "calls_per_s"]


def test_errors_and_ratios_are_told(tmp_path: Path) -> None:
    runs = [made_up(tmp_path, "shared"), made_up(tmp_path, "per-model", slower=2.0)]
    assert runs[1].measured["latency_p50_s"] == pytest.approx(2 * runs[1].simulated["latency_p50_s"])
    for ratio in ratios(runs):
        assert ratio["against"] == "per-model"
        assert ratio["measured"] == pytest.approx(2 * ratio["simulated"])
    text = table(runs)
    assert "| tool_heavy, 5 calls, 2 models, closed:2 | per-model |" in text
    assert text.count("-50%") >= 7


def test_roles_have_the_models_that_they_had_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cast: list[tuple[str, ...]] = []
    whole = _template_tokens

    def template_tokens(calls: Any, workload: Workload, names: Any) -> tuple[int, int]:
        cast.append(workload.declared)
        return whole(calls, workload, names)

    monkeypatch.setattr("experiments.calibration.runs._template_tokens", template_tokens)
    roles = ("explorer", "editor", "tester", "reviewer")
    made_up(tmp_path, "shared", roles=list(roles))
    made_up(tmp_path, "shared")  # as before runs said it: those that were drawn
    assert cast == [roles, ()]
