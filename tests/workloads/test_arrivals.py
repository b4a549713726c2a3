import itertools

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson, Trace, parse_arrivals


def test_poisson_arrivals_come_at_their_rate_and_by_their_seed() -> None:
    times = Poisson(0.5).times(4001)
    assert times[0] == 0
    assert list(times) == sorted(times)
    assert times[-1] / 4000 == pytest.approx(2.0, rel=0.05)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sum(gap > 2.0 for gap in gaps) / 4000 == pytest.approx(0.368, abs=0.03)  # exponential, not even
    assert Poisson(0.5).times(10) == times[:10] != Poisson(0.5, seed=1).times(10)


@pytest.mark.parametrize(
    ("text", "load"),
    [("closed:4", Closed(4)), ("poisson:0.25", Poisson(0.25, 7)), ("trace", Trace()), ("trace:2.5", Trace(2.5))],
)
def test_a_load_is_read_as_it_is_written(text: str, load: Arrivals) -> None:
    assert parse_arrivals(text, seed=7) == load
    assert str(load) == text


@pytest.mark.parametrize(
    "text",
    ["closed", "closed:0", "closed:1.5", "poisson:0", "poisson:nan", "poisson:inf", "trace:", "trace:0", "open:1"],
)
def test_a_load_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"load '{text}': give `closed:4`"):
        parse_arrivals(text)


def test_recorded_sessions_arrive_as_they_did_or_faster() -> None:
    starts = (0.0, 1.0, 5.0, 6.0)
    assert Trace(starts=starts).times(3) == starts[:3]
    assert Trace(2.0, starts).times(4) == (0.0, 0.5, 2.5, 3.0)
