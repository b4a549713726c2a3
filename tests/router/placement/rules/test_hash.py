from collections import Counter

from prefillshare.router.placement.rule import Prompt
from prefillshare.router.placement.rules.hash import Hash
from tests.router.placement.rules.candidates import candidates, names

SESSIONS = [Prompt(1, ("x-session-id", str(number))) for number in range(3000)]
FOUR = candidates(load=[0, 0, 0, 0])


def homes(workers: list) -> list[str]:
    return [names(Hash().keep(workers, session)) for session in SESSIONS]


def test_a_session_has_one_worker_whatever_the_order_of_workers() -> None:
    assert homes(FOUR) == homes(FOUR[::-1])
    assert all(700 < count < 800 for count in Counter(homes(FOUR)).values())


def test_only_the_sessions_of_a_worker_that_leaves_move() -> None:
    before, after = homes(FOUR), homes(FOUR[:3])
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "3")
    assert len({new for old, new in zip(before, after, strict=True) if old == "3"}) == 3


def test_a_call_without_a_session_has_no_opinion() -> None:
    assert not Hash().keep(FOUR, Prompt(1))


def test_a_user_and_a_session_of_one_name_are_different() -> None:
    users = [names(Hash().keep(FOUR, Prompt(1, ("user", str(number))))) for number in range(3000)]
    assert users != homes(FOUR)
