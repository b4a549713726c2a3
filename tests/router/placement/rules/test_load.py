from prefillshare.router.placement.rules.load import Load
from tests.router.placement.rules.candidates import PROMPT, candidates, names


def test_the_workers_with_the_fewest_tokens_in_flight_are_kept() -> None:
    assert names(Load().keep(candidates(load=[5, 3, 4, 3]), PROMPT)) == "13"
