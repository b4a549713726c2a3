from prefillshare.router.placement.rules.session import Session
from tests.router.placement.rules.candidates import PROMPT, candidates, names


def test_the_sessions_home_is_kept_however_busy_it_is() -> None:
    assert names(Session().keep(candidates(home=[False, True, False], load=[0, 9999, 0]), PROMPT)) == "1"


def test_without_a_home_there_is_no_opinion() -> None:
    assert not Session().keep(candidates(home=[False, False]), PROMPT)
