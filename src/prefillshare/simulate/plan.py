"""How many workers a load needs, with sharing and without.

From the fewest workers that the work could be done by, pools grow where a goal is missed, until a simulation under the
router's own placement meets all goals. Large pools grow by an eighth at a time, of which the last is halved until one
worker less is too few. A number of workers is tried in a short run first. What passes has to pass a longer one, too,
and keep up in it: in a short time sessions may happen to be few, and a backlog has no time to grow. A load that needs
many workers is planned as equal cells, each with a router and workers of its own; one that needs few is not, also where
sessions think for so long that very many are under way at a time.
"""

from dataclasses import asdict, dataclass, replace
from itertools import accumulate, takewhile
from math import ceil, inf
from typing import Any

from prefillshare.simulate.bounds import Alone, Demand
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.goals import ByModel, Goal, GoalMissed, Missed, Reached
from prefillshare.simulate.keeping_up import KEEPS_UP, KeptUp
from prefillshare.simulate.layout import Layout, SystemName
from prefillshare.simulate.simulation import Outcome, Simulation, intervals
from prefillshare.simulate.workload import many
from prefillshare.workloads.arrivals import Poisson

CELL_CALLS = 24_000  # in three lengths of a session, which a run lasts; more load means more cells,
CELLS_COST = 1.25  # unless all of them have more workers to begin with than so many times those of a single cell;
MOST_CALLS = 120_000  # but a run of more would take too long
SHORT_CALLS, LONG_CALLS = 3_000, 12_000  # measured at least, in runs of either kind
TOO_MANY = 6  # times the fewest workers; what then still misses a goal does so for another reason than load
SMALL_STEPS = 512  # tokens: workers that prefill and decode are planned with this budget too, which decodes smoothly


@dataclass(frozen=True, slots=True)
class Need:
    """What a system needs, all cells together, and what it reaches."""

    system: SystemName
    cells: int
    prefill_workers: tuple[int, ...]  # of each pool
    decode_workers: tuple[int, ...]
    ttft_p95_s: float  # of the model that is slowest
    tpot_p95_s: float
    hit_ratio: float
    computed_tokens_per_s: float
    pulled_bytes_per_s: float
    prefill_busy: float  # share of the time
    decode_busy: float
    max_num_batched_tokens: int
    kept_up: float  # how fast work is done, to how fast it arrives, in the pool that is furthest behind; at most 1

    @property
    def workers(self) -> int:
        return sum(self.prefill_workers) + sum(self.decode_workers)

    def as_dict(self) -> dict[str, Any]:
        return {"workers": self.workers} | asdict(self)


def plan(
    demand: Demand,
    profile: WorkerProfile,
    goal: Goal,
    system: SystemName,
    *,
    decode_pools: int | None = None,
    seed: int = 0,
) -> Need:
    """
    Args:
        decode_pools: the models are LoRA modules in so many pools, see `Layout`.

    Raises:
        GoalMissed: this system misses a goal with any number of workers, or growing does not help it.
        UserError: a call that no worker has room for.
    """
    layout = Layout(system, demand.models, decode_pools=decode_pools)
    budgets = {profile.max_num_batched_tokens}
    if system == "colocated":
        budgets.add(min(SMALL_STEPS, profile.max_num_batched_tokens))
    best: Need | None = None
    at_best: list[Reached] = []
    for budget in sorted(budgets):
        of_budget = replace(profile, max_num_batched_tokens=budget)
        try:
            best = _plan(layout, demand, of_budget, goal, seed, below=best.workers if best else inf) or best
        except GoalMissed as error:
            at_best += error.missed.at_best
    if not best:
        raise GoalMissed(Missed(system, goal, tuple(at_best)))
    return best


def _plan(
    layout: Layout, demand: Demand, profile: WorkerProfile, goal: Goal, seed: int, *, below: float
) -> Need | None:
    """None if `below` workers or more are needed, which is known before it is known how many."""
    alone = Alone(layout, demand, profile, seed)
    alone.check(goal)
    run = _Run(demand, profile, alone, seed, _cells(demand, alone, goal))
    too_few, layout = None, alone.fewest(goal, run.demand.rate)
    most = TOO_MANY * layout.workers()
    if run.cells * layout.workers() >= below:
        return None
    measured, grown = run.tried(layout, goal)
    while grown != layout:
        if grown.workers() > most:
            raise GoalMissed(Missed(layout.system, goal, (run.reached(measured),)))
        too_few, layout = layout, grown
        if run.cells * (too_few.workers() + 1) >= below:
            return None
        measured, grown = run.tried(layout, goal)
    # Large pools have grown by several workers at a time: a system that needs many is not to be charged for more.
    while too_few and (between := _between(too_few, layout)) != layout:
        tried, grown = run.tried(between, goal)
        if grown == between:
            layout, measured = between, tried
        else:
            too_few = between
    return run.need(measured) if run.cells * layout.workers() < below else None


def _cells(demand: Demand, alone: Alone, goal: Goal) -> int:
    """As many as keep runs short, or fewer, where workers would be idle: a cell has one in each pool at least."""
    calls = 3 * alone.session_s * demand.rate * alone.calls
    most, least = (max(1, ceil(calls / of_a_cell)) for of_a_cell in (CELL_CALLS, MOST_CALLS))
    affordable = CELLS_COST * alone.fewest(goal, demand.rate).workers()
    cells = most
    while cells > least:
        workers = alone.fewest(goal, demand.rate / cells).workers()
        if cells * workers <= affordable:
            return cells
        # Each of fewer cells has as many workers at least, so that all numbers between are too many for these.
        cells = min(cells - 1, int(affordable / workers))
    return least


@dataclass(frozen=True, slots=True)
class _Measured:
    layout: Layout
    seen: ByModel
    outcome: Outcome
    seconds: float  # in which calls counted
    kept_up: KeptUp | None  # None: too short to say

    @property
    def session_s(self) -> float:
        """The mean of all sessions."""
        return sum(self.seen.session_s) / len(self.seen.session_s)


class _Run:
    """The simulation of a cell: it fills for one and a half lengths of a session, then calls count."""

    def __init__(self, demand: Demand, profile: WorkerProfile, alone: Alone, seed: int, cells: int) -> None:
        self._session_s, self.cells = alone.session_s, cells
        self.demand = replace(demand, rate=demand.rate / cells)
        self._calls_per_s = self.demand.rate * alone.calls
        self._profile, self._seed = profile, seed

    def tried(self, layout: Layout, goal: Goal) -> tuple[_Measured, Layout]:
        """What the layout reaches, and how it has to grow: not at all if nothing is missed, in a long run too."""
        measured = self._measure(layout, self._session_s, SHORT_CALLS, tell_kept_up=False)
        grown = _grown(measured, goal)
        if grown != layout:
            return measured, grown
        # Sessions may take far longer than they do alone.
        session_s = max(measured.session_s, self._session_s)
        measured = self._measure(layout, session_s, LONG_CALLS, tell_kept_up=True)
        return measured, _grown(measured, goal)

    def _measure(self, layout: Layout, session_s: float, calls: int, *, tell_kept_up: bool) -> _Measured:
        since = 1.5 * session_s
        # As long as it fills, but for the sake of sessions that think for long, no longer than most runs are.
        seconds = max(min(since, LONG_CALLS / self._calls_per_s), calls / self._calls_per_s)
        demand, until = self.demand, since + seconds
        seen, arrivals = ByModel(since, until), Poisson(demand.rate, self._seed)
        # As many as arrive until the end: with fewer, the load would be less by then.
        begun = takewhile(lambda at: at <= until, accumulate(intervals(arrivals), initial=0.0))
        simulation = Simulation(
            layout,
            self._profile,
            many(demand.shapes, sum(1 for _ in begun), self._seed),
            arrivals,
            seen,
            preamble_tokens=demand.preamble_tokens,
            busy_within=(since, until),
        )
        outcome = simulation.run()
        kept_up = seen.slowing.kept_up(layout, demand.shapes) if tell_kept_up else None
        return _Measured(layout, seen, outcome, seconds, kept_up)

    def reached(self, measured: _Measured) -> Reached:
        seen, workers = measured.seen, self.cells * measured.layout.workers()
        kept_up = measured.kept_up.least if measured.kept_up else None
        budget = self._profile.max_num_batched_tokens
        return Reached(seen.worst_ttft(), seen.worst_tpot(), budget, workers, kept_up)

    def need(self, measured: _Measured) -> Need:
        layout, seen, cells = measured.layout, measured.seen, self.cells
        totals, kept_up = seen.totals, measured.kept_up
        assert kept_up is not None, "plans are made by long runs"
        computed, pulled = totals.prompt_tokens - totals.cached_tokens, totals.pulled_tokens
        return Need(
            system=layout.system,
            cells=cells,
            prefill_workers=tuple(cells * number for number in layout.prefill_numbers()),
            decode_workers=tuple(cells * number for number in layout.decode_numbers()),
            ttft_p95_s=seen.worst_ttft(),
            tpot_p95_s=seen.worst_tpot(),
            hit_ratio=totals.cached_tokens / totals.prompt_tokens,
            computed_tokens_per_s=cells * computed / measured.seconds,
            pulled_bytes_per_s=cells * pulled * self._profile.kv_bytes_per_token / measured.seconds,
            prefill_busy=measured.outcome.busy.get("prefill", 0.0),
            decode_busy=measured.outcome.busy.get("decode", 0.0),
            max_num_batched_tokens=self._profile.max_num_batched_tokens,
            kept_up=kept_up.least,
        )


def _between(fewer: Layout, more: Layout) -> Layout:
    """With half of what each pool has more, rounded up."""
    both = ((fewer.prefill_numbers(), more.prefill_numbers()), (fewer.decode_numbers(), more.decode_numbers()))
    prefill, decode = (tuple(-(-(low + high) // 2) for low, high in zip(*pair, strict=True)) for pair in both)
    return replace(more, prefill_workers=prefill or more.prefill_workers, decode_workers=decode)


def _grown(measured: _Measured, goal: Goal) -> Layout:
    """With more workers where a goal is missed; the same layout if none is."""
    layout, seen = measured.layout, measured.seen
    prefill, decode = list(layout.prefill_numbers()), list(layout.decode_numbers())
    slow_prefill, slow_decode = set[int](), set[int]()
    for pool, models in enumerate(layout.decode_pool_models()):
        for model in models:
            late = seen.ttft(model) > goal.ttft_s
            # Where leg 1 is the lesser part of it, the call waits for a seat, or room, in its decode worker.
            if late and prefill and seen.leg_1(model) >= seen.ttft(model) / 2:
                slow_prefill.add(layout.prefill_pool_of(model))
            elif late or seen.tpot(model) > goal.tpot_s:
                slow_decode.add(pool)
    if kept_up := measured.kept_up:
        slow_prefill |= {pool for pool, share in enumerate(kept_up.prefill) if share < KEEPS_UP}
        slow_decode |= {pool for pool, share in enumerate(kept_up.decode) if share < KEEPS_UP}
    for numbers, slow in ((prefill, slow_prefill), (decode, slow_decode)):
        for pool in slow:
            numbers[pool] += 1 + numbers[pool] // 8
    return replace(layout, prefill_workers=tuple(prefill) or layout.prefill_workers, decode_workers=tuple(decode))
