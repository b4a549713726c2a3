import pytest

from prefillshare.workloads.family import load_family
from prefillshare.workloads.generate import generate
from prefillshare.workloads.session import Turn, prompt_tokens
from tests.workloads.tokenisers import words


@pytest.mark.parametrize("name", ["react", "reflexion", "tool_heavy"])
def test_every_text_has_the_tokens_that_it_says(name: str) -> None:
    workload = generate(load_family(name), 5, words)
    assert len(words(workload.preamble)) == workload.preamble_tokens
    for turn in turns(workload):
        assert len(words(turn.observed)) == turn.observed_tokens
        assert len(words(turn.output)) == turn.output_tokens
        assert len(words(turn.instructions)) == turn.instructions_tokens


def test_a_seed_decides_and_sessions_do_not_depend_on_their_number() -> None:
    family = load_family("reflexion")
    three, five, other = (generate(family, count, words, seed) for count, seed in ((3, 0), (5, 0), (3, 1)))
    assert three.sessions == five.sessions[:3]
    assert three.preamble == five.preamble
    assert other.sessions[0] != three.sessions[0]
    assert other.preamble != three.preamble


def test_sessions_share_the_preamble_alone() -> None:
    first, second = generate(load_family("tool_heavy"), 2, words).sessions
    assert first.turns[0].observed.split()[:5] != second.turns[0].observed.split()[:5]


def test_trials_begin_again_with_what_was_learnt() -> None:
    sessions = generate(load_family("reflexion"), 20, words).sessions
    tried_again = next(session for session in sessions if any(turn.restarts for turn in session.turns))
    place = next(place for place, turn in enumerate(tried_again.turns) if turn.restarts)
    question, reflection, again = tried_again.turns[0], tried_again.turns[place - 1], tried_again.turns[place]
    assert (reflection.role, again.role) == ("reflector", "planner")
    assert again.observed == f"{question.observed} {reflection.output}"
    assert again.think_s == 0


@pytest.mark.parametrize(("answered", "last"), [(1.0, 1000), (0.0, 10)])
def test_the_last_step_reads_a_finding_where_the_trial_is_answered(answered: float, last: int) -> None:
    family = load_family("react")
    lengths = {**family.lengths, "finding": (1000.0, 1000.0), "observation": (10.0, 10.0)}
    change = {"lengths": lengths, "answered": dict.fromkeys(range(2, 7), answered)}
    for session in generate(family.model_copy(update=change), 5, words).sessions:
        *before, end = [turn.observed_tokens for turn in session.turns[1:] if turn.observed]
        assert (set(before) | {10}, end) == ({10}, last)


def test_roles_take_turns_as_in_the_trajectories() -> None:
    for session in generate(load_family("react"), 20, words).sessions:
        roles = [turn.role for turn in session.turns]
        steps = roles.count("planner")
        assert roles in (["planner", "actor"] * steps, [*["planner", "actor"] * steps, "evaluator"])
        assert not any(turn.observed for turn in session.turns if turn.role == "actor")
        assert all(turn.think_s > 0 for turn in session.turns[1:] if turn.observed)


def test_tool_heavy_sessions_read_much_say_little_and_fit_into_eight_thousand_tokens() -> None:
    family = load_family("tool_heavy")
    workload = generate(family, 100, words)
    observed, output = (
        sum(getattr(turn, name) for turn in turns(workload)) for name in ("observed_tokens", "output_tokens")
    )
    assert observed / output > 50
    longest = [max(prompt_tokens(workload, session)) for session in workload.sessions]
    assert max(longest) <= family.context_limit
    assert max(longest) > 7000
    assert {len({turn.role for turn in session.turns}) for session in workload.sessions} == {4}


def turns(workload) -> list[Turn]:
    return [turn for session in workload.sessions for turn in session.turns]
