from experiments.agent_calls import AgentCall, calls_of
from prefillshare.workloads.session import Session, Turn, Workload
from tests.workloads.tokenisers import characters


def turn(role: str, observed: str, output: str) -> Turn:
    return Turn(role, observed, len(observed), output, len(output), 0.5, f"You are the {role}.")


def test_roles_share_their_context_and_sessions_their_preamble() -> None:
    why, how = (
        Session(name, (turn("planner", f"Question: {name}", "so far"), turn("actor", "", "act")))
        for name in ("why", "how")
    )
    first, second = calls_of(Workload("w", "examples", 8, (why, how)), characters)
    planner, actor = map(prompt, first)
    assert [call.model for call in first] == ["planner", "actor"]
    assert [call.output_tokens for call in first] == [6, 3]
    assert planner.index(b"You are the planner") > planner.index(b"Question: why")
    assert actor.startswith(planner[: planner.index(b"You are the planner")].rstrip())
    assert b"so far" in actor
    assert prompt(second[0]).split(b"Question")[0] == planner.split(b"Question")[0]
    assert first[0].common == 8
    assert first[0].body["kv_transfer_params"]["do_remote_decode"]


def prompt(call: AgentCall) -> bytes:
    return bytes(call.token_ids.tolist())
