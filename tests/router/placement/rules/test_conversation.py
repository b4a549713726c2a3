from prefillshare.router.placement.rules.conversation import Conversation
from tests.router.placement.rules.candidates import PROMPT, candidates, names


def test_the_worker_that_knows_most_of_this_conversation_is_kept() -> None:
    known = candidates(known=[900, 200, 500, 500], own=[False, True, True, True])
    assert names(Conversation().keep(known, PROMPT)) == "23"


def test_a_common_beginning_is_no_reason() -> None:
    assert not Conversation().keep(candidates(known=[900, 0], own=[False, False]), PROMPT)
