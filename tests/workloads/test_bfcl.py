import json

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads import bfcl
from prefillshare.workloads.session import Session, Workload
from tests.workloads.tokenisers import words


@pytest.fixture(scope="module")
def workload() -> Workload:
    pytest.importorskip("bfcl_eval")
    return bfcl.read_bfcl("base", words)


def session(workload: Workload, name: str) -> Session:
    return next(session for session in workload.sessions if session.name == name)


def test_calls_are_those_of_the_answers_and_returns_are_observed(workload: Workload) -> None:
    first, second, third, fourth, *_ = session(workload, "multi_turn_base_0").turns
    assert (first.role, first.output) == ("GorillaFileSystem", "cd(folder='document')")
    assert workload.preamble.startswith("Answer the user's requests by calling functions. There are:\n{")
    assert workload.preamble_tokens > 10
    assert "Move 'final_report.pdf'" in first.observed
    assert (second.output, second.observed) == (
        "mkdir(dir_name='temp')",
        'Returned: {"current_working_directory": "document"}',
    )
    assert third.think_s > 0
    # A request of the user's follows what its last call returned.
    assert fourth.observed.startswith("Returned: ")
    assert "\n\nUser: Perform a detailed search" in fourth.observed
    assert fourth.think_s == 0


def test_every_tool_has_an_agent(workload: Workload) -> None:
    assert len(workload.roles()) == 8
    assert "You are the agent for TradingBot" in {
        turn.instructions.partition(".")[0] for session in workload.sessions for turn in session.turns
    }


def test_tools_keep_no_state_from_an_earlier_reading(workload: Workload) -> None:
    assert bfcl.read_bfcl("base", words) == workload


def test_long_answers_are_cut() -> None:
    pytest.importorskip("bfcl_eval")
    workload = bfcl.read_bfcl("long_context", words, max_observation=500)
    observed = [turn.observed for session in workload.sessions for turn in session.turns if turn.think_s]
    assert max(map(len, observed)) == len("Returned: ") + 500


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfcl, "_PACKAGE", "bfcl_eval_that_is_not_there")
    with pytest.raises(UserError, match="pip install --no-deps bfcl-eval"):
        bfcl.read_bfcl("base", words)


def test_descriptions_are_those_of_the_package(workload: Workload) -> None:
    beginning = workload.preamble + session(workload, "multi_turn_base_0").turns[0].observed
    described = beginning.split("\n\n")[0].splitlines()[1:]
    names = [json.loads(line)["name"] for line in described]
    assert {"cd", "mv", "post_tweet"} <= set(names)
