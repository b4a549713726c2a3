"""The sessions of runs, opened once."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import NamedTuple

from prefillshare.bench.matrix import Matrix, Run, workload_of
from prefillshare.bench.systems import SYSTEMS
from prefillshare.workloads.family import family_names
from prefillshare.workloads.session import Workload
from prefillshare.workloads.tokens import Tokenise


class Opened(NamedTuple):
    """`digest` is of what is played."""

    workload: Workload
    digest: str


def opener(matrix: Matrix, tokenise: Tokenise) -> Callable[[Run], Opened]:
    """Opens a run's workload, once for all runs that play the same sessions: reading a large trace takes long, and a
    file that changes meanwhile is then played as it was checked. Raises UserError as `workload_of`."""

    @cache
    def opened(each: Run) -> Opened:
        workload = workload_of(each, tokenise, matrix.machine.max_model_len, matrix.mode)
        played = repr((workload.preamble, workload.preamble_tokens, workload.sessions))
        return Opened(workload, sha256(played.encode()).hexdigest())

    def of_any_system(each: Run) -> Opened:
        repeat = each.repeat if is_drawn(each) else 0
        return opened(replace(each, system=SYSTEMS[0], models=1, repeat=repeat))

    return of_any_system


def is_drawn(each: Run) -> bool:
    """Whether other sessions are drawn for every repeat; a file has the same."""
    return each.workload.source in family_names()
