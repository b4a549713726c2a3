import pytest

from experiments.bench.matrices import LIMITS, LIMITS_MORE
from prefillshare.bench.matrix import FULL, Matrix, runs
from prefillshare.bench.open_loop import FEWEST
from prefillshare.workloads.arrivals import Poisson, parse_arrivals


@pytest.mark.parametrize("matrix", [FULL, LIMITS, LIMITS_MORE], ids=["full", "limits", "more"])
def test_open_loops_have_enough_sessions_to_say_what_was_kept_up_with(matrix: Matrix) -> None:
    opened = [run for run in runs(matrix) if isinstance(parse_arrivals(run.load), Poisson)]
    assert {run.workload.source for run in opened} == {"react", "reflexion", "tool_heavy"}
    assert {run.name: run.workload.sessions for run in opened if run.workload.sessions < FEWEST} == {}
