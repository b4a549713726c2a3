import pytest

from prefillshare.workloads.alike import begin_alike, shared_by_some
from prefillshare.workloads.conversation import Conversation
from prefillshare.workloads.session import Session, Turn, Workload, prompt_tokens
from tests.workloads.tokenisers import words


def turn(observed: str, *, restarts: bool = False) -> Turn:
    return Turn("r", observed, len(words(observed)), "so", 1, 0.0, "You go on.", 4, restarts)


def session(name: str, *observed: str) -> Session:
    return Session(name, tuple(turn(text, restarts=number > 0) for number, text in enumerate(observed)))


def rendered(workload: Workload) -> list[object]:
    bodies = []
    for each in workload.sessions:
        conversation = Conversation(workload.preamble)
        for call in each.turns:
            bodies.append(conversation.request(call, "m"))
            conversation.answered(call, "")
    return bodies


@pytest.mark.parametrize(
    ("texts", "preamble"),
    [
        (("one two three", "one two four"), "one two"),
        (("one two three", "one two threefold"), "one two"),
        (("one two", "one two three"), "one two"),
        (("one two", "one two"), "one two"),
        (("There are:\n{a} b", "There are:\n{c} d"), "There are:"),
        (("one", "other"), ""),
        (("", "one"), ""),
    ],
)
def test_the_preamble_is_what_all_begin_with_and_prompts_stay_what_they_were(texts: tuple, preamble: str) -> None:
    sessions = [session(text, text) for text in texts]
    before, after = Workload("w", "", 0, tuple(sessions)), begin_alike("w", sessions, words)
    assert (after.preamble, after.preamble_tokens) == (preamble, len(words(preamble)))
    assert rendered(after) == rendered(before)
    for one, two in zip(before.sessions, after.sessions, strict=True):
        assert list(prompt_tokens(before, one)) == list(prompt_tokens(after, two))


def test_trials_that_begin_again_begin_with_it_too() -> None:
    sessions = [session("a", "one two three", "one three"), session("b", "one two three")]
    after = begin_alike("w", sessions, words)
    assert after.preamble == "one"
    assert [call.observed for call in after.sessions[0].turns] == [" two three", " three"]
    assert rendered(after) == rendered(Workload("w", "", 0, tuple(sessions)))


def test_a_session_alone_shares_nothing() -> None:
    assert begin_alike("w", [session("a", "one two", "one two")], words).preamble == ""


def test_what_only_some_begin_with_is_counted() -> None:
    sessions = (session("a", "one two three four"), session("b", "one two five six"), session("c", "seven eight ten"))
    found = shared_by_some(Workload("w", "task", 1, sessions))
    # Characters stand for tokens: "one two" is 7 of 18 and of 16, and each prompt has its preamble.
    assert found == pytest.approx((4 * 7 / 18 + 4 * 7 / 16) / (5 + 5 + 4))
    assert shared_by_some(Workload("w", "", 0, (session("a", "same"), session("b", "same")))) == 1
    assert shared_by_some(Workload("w", "", 0, (session("a", ""),))) == 0


def test_a_session_may_begin_with_all_that_another_came_to() -> None:
    same, text = "one two three so four five", "one two three so four five six"
    grown = Session("a", (turn("one two three"), turn("four five")))
    found = shared_by_some(Workload("w", "", 0, (grown, session("b", text))))
    assert found == pytest.approx((3 + 7 * len(same) / len(text)) / 10)
