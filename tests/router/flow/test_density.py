import pytest

from prefillshare.router.flow.density import Density
from prefillshare.router.pool import Pool

BASE, OTHER = Pool("prefill", []), Pool("prefill/other", [])


def density_of(*bytes_per_token: float, size: int = 10_000, tenant: str = "") -> Density:
    density = Density()
    for each in bytes_per_token:
        density.saw(BASE, tenant, size, round(size / each))
    return density


def test_text_is_taken_for_english_until_prompts_are_known() -> None:
    assert Density().of(BASE, "") == 4
    assert density_of(*[5.0] * 7).of(BASE, "") == 4
    assert density_of(*[5.0] * 8).of(BASE, "") == 5


def test_the_densest_of_recent_prompts_count_from_the_first_on() -> None:
    assert density_of(2.0).of(BASE, "") == 2
    density = density_of(*[2.5] * 8, *[5.0] * 30)
    assert density.of(BASE, "") == 2.5
    for _ in range(64):
        density.saw(BASE, "", 10_000, 2000)
    assert density.of(BASE, "") == 5


def test_one_prompt_in_sixteen_may_be_like_no_other() -> None:
    assert density_of(*[5.0] * 14, 1.0).of(BASE, "") == 1
    assert density_of(*[5.0] * 15, 1.0).of(BASE, "") == 5
    assert density_of(*[5.0] * 60, *[1.0] * 5).of(BASE, "") == 1


def test_short_prompts_which_are_mostly_template_do_not_count() -> None:
    assert density_of(1.0, size=1000).of(BASE, "") == 4


def test_tenants_and_bases_have_their_own() -> None:
    density = density_of(*[2.0] * 8, tenant="acme")
    assert [density.of(BASE, "acme"), density.of(BASE, "other"), density.of(OTHER, "acme")] == [2, 4, 4]


def test_what_is_known_is_of_those_who_were_seen() -> None:
    density = density_of(*[2.0] * 8, tenant="acme")
    density.saw(BASE, "other", 10, 10)  # too short to count
    assert (density.known(BASE), density.known(OTHER)) == ({"acme": 2}, {})


@pytest.mark.parametrize(("told", "taken"), [(0.01, 1), (1000.0, 8)])
def test_what_no_text_can_be_is_not_believed(told: float, taken: float) -> None:
    assert density_of(*[told] * 8).of(BASE, "") == taken
    density = Density()
    density.saw(BASE, "", 10_000, 0)
    assert density.of(BASE, "") == 4
