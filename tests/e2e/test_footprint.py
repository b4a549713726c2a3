"""What a worker takes from the machine that it shares with the others."""

import os
import time

import psutil
import pytest

from tests.e2e.conftest import Workers
from tests.e2e.support import prefill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def processes(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def test_a_worker_stays_on_its_core(workers: Workers) -> None:
    for spec in (workers.prefill, workers.full, workers.lora, workers.stranger):
        for process in processes(workers.pids[spec.name]):
            threads = [thread.id for thread in process.threads()]
            assert {core for thread in threads for core in os.sched_getaffinity(thread)} == {spec.core}, spec.name


def test_the_engine_is_a_fork_that_has_no_part_in_the_port(workers: Workers) -> None:
    """With it, it would keep the port of an API server that is gone, and calls would wait there for nobody."""
    for spec in (workers.prefill, workers.full, workers.lora, workers.stranger):
        leader, engine = processes(workers.pids[spec.name])  # one more, if it were spawned
        listening = [
            {each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN}
            for process in (leader, engine)
        ]
        assert spec.port in listening[0] - listening[1], spec.name


def test_a_worker_that_waits_leaves_its_core_to_others(workers: Workers) -> None:
    """Nobody fetches this prompt, so the prefill worker waits until the lease of its blocks ends."""
    prefill(workers.prefill, list(range(4000, 4040)))
    family = processes(workers.pids[workers.prefill.name])

    def seconds() -> float:
        return sum(process.cpu_times().user + process.cpu_times().system for process in family)

    before = seconds()
    time.sleep(3)
    assert seconds() - before < 0.6
