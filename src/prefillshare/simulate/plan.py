"""How many workers a load needs, with sharing and without.

From the fewest workers that the work could be done by, pools grow where a goal is missed, until a simulation under the
router's own placement meets all goals. A load that needs many workers is planned as equal cells, each with a router and
workers of its own.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from prefillshare.simulate.bounds import Alone, Demand
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.goals import ByModel, Goal, GoalMissed, Missed, Reached
from prefillshare.simulate.layout import Layout, SystemName
from prefillshare.simulate.simulation import Outcome, Simulation
from prefillshare.simulate.workload import many
from prefillshare.workloads.arrivals import Poisson

CELL_CALLS = 24_000  # simulated at most; more load means more cells
MEASURED_CALLS = 3_000  # at least
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
        decode_pools: shared only: the models are LoRA modules in so many pools of decode workers.

    Raises:
        GoalMissed: this system misses a goal with any number of workers, or growing does not help it.
        UserError: a call that no worker has room for.
    """
    layout = Layout(system, demand.models, decode_pools=decode_pools)
    if system != "colocated":
        return _plan(layout, demand, profile, goal, seed)
    budgets = {profile.max_num_batched_tokens, min(SMALL_STEPS, profile.max_num_batched_tokens)}
    found: list[Need] = []
    at_best: list[Reached] = []
    for budget in sorted(budgets):
        try:
            found.append(_plan(layout, demand, replace(profile, max_num_batched_tokens=budget), goal, seed))
        except GoalMissed as error:
            at_best += error.missed.at_best
    if not found:
        raise GoalMissed(Missed(system, goal, tuple(at_best)))
    return min(found, key=lambda need: need.workers)


def _plan(layout: Layout, demand: Demand, profile: WorkerProfile, goal: Goal, seed: int) -> Need:
    alone = Alone(layout, demand, profile, seed)
    alone.check(goal)
    run = _Run(demand, profile, alone, seed)
    fewest = layout = alone.fewest(goal, run.demand.rate)
    while layout.workers() <= TOO_MANY * fewest.workers():
        seen, outcome = run.measure(layout)
        grown = _grown(layout, seen, goal)
        if grown == layout:
            return run.need(layout, seen, outcome)
        most, layout = layout, grown
    raise GoalMissed(Missed(layout.system, goal, (run.reached(most, seen),)))


class _Run:
    """The simulation of a cell: it fills for one and a half lengths of a session, then calls count."""

    def __init__(self, demand: Demand, profile: WorkerProfile, alone: Alone, seed: int) -> None:
        fills_s = 1.5 * alone.session_s
        calls_per_s = demand.rate * alone.calls
        self.cells = max(1, ceil(2 * fills_s * calls_per_s / CELL_CALLS))
        self.demand = replace(demand, rate=demand.rate / self.cells)
        self._since = fills_s
        self._seconds = max(fills_s, MEASURED_CALLS * self.cells / calls_per_s)
        self._profile, self._seed = profile, seed

    def measure(self, layout: Layout) -> tuple[ByModel, Outcome]:
        demand, until = self.demand, self._since + self._seconds
        seen = ByModel(self._since, until)
        sessions = many(demand.shapes, ceil(demand.rate * until) + 1, self._seed)
        arrivals = Poisson(demand.rate, self._seed)
        simulation = Simulation(
            layout,
            self._profile,
            sessions,
            arrivals,
            seen,
            preamble_tokens=demand.preamble_tokens,
            busy_within=(self._since, until),
        )
        return seen, simulation.run()

    def reached(self, layout: Layout, seen: ByModel) -> Reached:
        budget = self._profile.max_num_batched_tokens
        return Reached(seen.worst_ttft(), seen.worst_tpot(), budget, workers=self.cells * layout.workers())

    def need(self, layout: Layout, seen: ByModel, outcome: Outcome) -> Need:
        totals, cells = seen.totals, self.cells
        computed, pulled = totals.prompt_tokens - totals.cached_tokens, totals.pulled_tokens
        return Need(
            system=layout.system,
            cells=cells,
            prefill_workers=tuple(cells * number for number in layout.prefill_numbers()),
            decode_workers=tuple(cells * number for number in layout.decode_numbers()),
            ttft_p95_s=seen.worst_ttft(),
            tpot_p95_s=seen.worst_tpot(),
            hit_ratio=totals.cached_tokens / totals.prompt_tokens,
            computed_tokens_per_s=cells * computed / self._seconds,
            pulled_bytes_per_s=cells * pulled * self._profile.kv_bytes_per_token / self._seconds,
            prefill_busy=outcome.busy.get("prefill", 0.0),
            decode_busy=outcome.busy.get("decode", 0.0),
            max_num_batched_tokens=self._profile.max_num_batched_tokens,
        )


def _grown(layout: Layout, seen: ByModel, goal: Goal) -> Layout:
    """With more workers where a goal is missed; the same layout if none is."""
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
    for numbers, slow in ((prefill, slow_prefill), (decode, slow_decode)):
        for pool in slow:
            numbers[pool] += 1 + numbers[pool] // 8
    return replace(layout, prefill_workers=tuple(prefill) or layout.prefill_workers, decode_workers=tuple(decode))
