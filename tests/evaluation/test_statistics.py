import random

import pytest

from prefillshare.evaluation.statistics import paired_difference, wilson


def test_wilson_is_the_published_interval() -> None:
    # Newcombe (1998), table I: 81 of 263, method 3.
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


@pytest.mark.parametrize(
    ("right", "items", "limits"), [(50, 100, (0.4038, 0.5962)), (100, 100, (0.9630, 1.0)), (0, 10, (0.0, 0.2775))]
)
def test_wilson_intervals_are_those_of_the_textbook(right: int, items: int, limits: tuple[float, float]) -> None:
    interval = wilson(right, items)
    assert (interval.low, interval.high) == pytest.approx(limits, abs=1e-4)


@pytest.mark.parametrize("right", [0, 10])
def test_wilson_says_something_at_the_ends(right: int) -> None:
    interval = wilson(right, 10)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.high - interval.low == pytest.approx(0.2775, abs=1e-4)


def verdicts(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(False, False)] * neither
    return [one for one, _ in pairs], [other for _, other in pairs]


def test_paired_difference_is_the_published_interval() -> None:
    # The example of ci.prop.ps in the R package statpsych (Bonett and Price 2012).
    found = paired_difference(*verdicts(both=6, only_first=26, only_second=4, neither=12))
    assert found.difference.low == pytest.approx(0.2548067, abs=1e-6)
    assert found.difference.high == pytest.approx(0.6251933, abs=1e-6)
    assert found.difference.estimate == pytest.approx(22 / 48)
    assert (found.only_first, found.only_second) == (26, 4)


def test_p_is_mcnemars_exact() -> None:
    # 1 and 7 discordant pairs: 2 * (1 + 8) / 2**8 (Fagerland, Lydersen and Laake 2014, table V).
    assert paired_difference(*verdicts(1, 1, 7, 12)).p == pytest.approx(0.0703, abs=5e-5)
    assert paired_difference(*verdicts(5, 0, 0, 5)).p == 1


def test_systems_that_agree_on_few_items_are_not_proven_equal() -> None:
    few = paired_difference([True] * 10, [True] * 10).difference
    many = paired_difference([True] * 1000, [True] * 1000).difference
    assert few.low < -0.1
    assert few.high > 0.1
    assert many.high - many.low < 0.01


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(0)
    truth, covered, trials = 0.05, 0, 600
    for _ in range(trials):
        pairs = draw.choices([(True, True), (True, False), (False, True), (False, False)], [70, 12, 7, 11], k=100)
        found = paired_difference([one for one, _ in pairs], [other for _, other in pairs]).difference
        covered += found.low <= truth <= found.high
    assert 0.92 < covered / trials < 0.98


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="as many"):
        paired_difference([True], [True, False])
