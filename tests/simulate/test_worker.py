"""The worker, which takes many steps at once, against one that takes each by itself."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefillshare.simulate.cache import PrefixCache
from prefillshare.simulate.clock import Clock, Device
from prefillshare.simulate.cost import Cost
from prefillshare.simulate.worker import Job, Worker

COST = Cost(step_s=0.01, token_s=0.001, launch_s=0.002, pair_s=1e-6, sequence_s=1e-4, kv_token_s=1e-6)
SEATS, BUDGET, BLOCK = 3, 50, 16


@dataclass(frozen=True)
class Wanted:
    arrives: float
    prompt: int
    output: int
    fetched: bool = False


class Tracked(Job):
    def __init__(self, worker: Worker, wanted: Wanted) -> None:
        private = -(-(wanted.prompt + wanted.output) // BLOCK)
        super().__init__(wanted.prompt, wanted.output, [], private)
        self.worker, self.fetched = worker, wanted.fetched
        self.first: list[float] = []
        self.ended: list[float] = []

    def admitted(self, now: float) -> None:
        if self.fetched:
            self.worker.arrived(now, self)

    def first_token(self, now: float) -> None:
        self.first.append(now)

    def finished(self, now: float) -> None:
        self.ended.append(now)
        self.worker.release(now, self)


def simulate(
    jobs: list[Wanted], blocks: int = 10_000, cost: Cost = COST, weight: float = 1.0
) -> tuple[list[Tracked], Worker]:
    clock = Clock()
    worker = Worker("worker", Device(clock), cost, PrefixCache(blocks), BLOCK, SEATS, BUDGET, weight)
    tracked = [Tracked(worker, job) for job in jobs]
    for job, wanted in zip(tracked, jobs, strict=True):
        clock.at(wanted.arrives, lambda now, job: worker.submit(now, job), job)
    clock.run()
    return tracked, worker


def step_by_step(jobs: list[Wanted]) -> list[tuple[float, float]]:
    """When each has its first and its last token."""
    now, first, ended = 0.0, [0.0] * len(jobs), [0.0] * len(jobs)
    computed, made = [job.prompt if job.fetched else 0 for job in jobs], [0] * len(jobs)
    seated: list[int] = []
    while not all(ended):
        come = [n for n, job in enumerate(jobs) if job.arrives <= now and not ended[n] and n not in seated]
        seated += sorted(come, key=lambda n: jobs[n].arrives)[: SEATS - len(seated)]
        if not seated:
            now = min(job.arrives for n, job in enumerate(jobs) if not ended[n])
            continue
        growing = [n for n in seated if computed[n] == jobs[n].prompt]
        left, tokens, pairs, prompts = BUDGET - len(growing), 0, 0.0, []
        for n in seated:
            if n not in growing and left:
                chunk = min(left, jobs[n].prompt - computed[n])
                pairs += chunk * (computed[n] + (chunk + 1) / 2)
                computed[n] += chunk
                tokens, left = tokens + chunk, left - chunk
                prompts.append(n)
        now += COST.step(tokens, pairs, len(growing), sum(jobs[n].prompt + made[n] for n in growing))
        for n in [*growing, *(n for n in prompts if computed[n] == jobs[n].prompt)]:
            made[n] += 1
            first[n] = first[n] or now
            if made[n] == jobs[n].output:
                ended[n] = now
                seated.remove(n)
    return list(zip(first, ended, strict=True))


# Arrivals at different times, and not at the very ends of steps: what comes first then is not what is tested.
ARRIVALS = st.integers(0, 3000).map(lambda number: number * 0.00098713)
JOBS = st.lists(
    st.builds(Wanted, ARRIVALS, st.integers(1, 120), st.integers(1, 30), st.booleans()),
    min_size=1,
    max_size=12,
    unique_by=lambda job: job.arrives,
)


@settings(deadline=None, max_examples=200)
@given(JOBS, st.sampled_from([1.0, 0.25]))
def test_it_does_what_single_steps_do(jobs: list[Wanted], weight: float) -> None:
    """Alone on a device, of whatever weight it is."""
    jobs = sorted(jobs, key=lambda job: job.arrives)
    tracked, worker = simulate(jobs, weight=weight)
    assert all(len(job.first) == len(job.ended) == 1 for job in tracked)
    found = [(job.first[0], job.ended[0]) for job in tracked]
    for one, other in zip(found, step_by_step(jobs), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert worker.computed_tokens == sum(job.prompt for job in jobs if not job.fetched)
    assert worker.cache.free == worker.cache.blocks


def test_a_prompt_waits_for_room_and_those_behind_it_wait_too() -> None:
    jobs = [Wanted(0.0, 60, 20), Wanted(0.0, 60, 20), Wanted(0.0, 1, 1)]
    tracked, worker = simulate(jobs, blocks=8)
    assert tracked[1].first[0] > tracked[0].ended[0]
    assert tracked[2].first[0] > tracked[0].ended[0]
    assert worker.cache.peak_in_use <= 8


def test_a_seat_is_given_on_while_blocks_are_still_held() -> None:
    class Holding(Tracked):
        def finished(self, now: float) -> None:
            self.ended.append(now)

    clock = Clock()
    worker = Worker("worker", Device(clock), COST, PrefixCache(100), BLOCK, 1, BUDGET)
    jobs = [Holding(worker, Wanted(0.0, 20, 1)) for _ in range(2)]
    for job in jobs:
        worker.submit(0.0, job)
    clock.run()
    assert jobs[1].ended == [pytest.approx(2 * jobs[0].ended[0])]
    assert worker.cache.in_use == 4


def test_a_long_prompt_is_cut_and_what_runs_goes_on_between() -> None:
    tracked, _ = simulate([Wanted(0.0, 10, 40), Wanted(0.02, 500, 1)])
    alone, _ = simulate([Wanted(0.0, 10, 40)])
    assert tracked[0].ended[0] - alone[0].ended[0] == pytest.approx(0.5, abs=0.2)  # 500 tokens of 1 ms
    assert tracked[0].ended[0] > tracked[1].ended[0] > 0.5
