"""What a load takes when nobody is in the way, and how many workers it cannot do without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from prefillshare.errors import UserError
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.goals import ByModel, Goal, GoalMissed, Missed, Reached
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import many
from prefillshare.workloads.arrivals import Closed

SESSIONS = 40
MOST = 1e9  # sessions a second, beyond any load


@dataclass(frozen=True, slots=True)
class Demand:
    """Sessions like `shapes`, `rate` of them a second.

    Raises:
        UserError: a rate that is not above 0, or above `MOST`.
    """

    shapes: Sequence[Shape]
    models: tuple[str, ...]
    rate: float
    preamble_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= MOST:
            raise UserError(f"rate: more than 0 and at most {MOST:,.0f} sessions a second, found {self.rate}")


class Alone:
    """Some sessions, one at a time, on one worker a pool."""

    def __init__(self, layout: Layout, demand: Demand, profile: WorkerProfile, seed: int = 0) -> None:
        """
        Raises:
            UserError: a call that no worker has room for.
        """
        self._layout, self._demand, self._profile = layout, demand, profile
        self._shapes = list(many(demand.shapes, SESSIONS, seed))
        seen = ByModel()
        arguments = (layout, profile, self._shapes, Closed(1), seen)
        simulation = Simulation(*arguments, preamble_tokens=demand.preamble_tokens)
        simulation.run()
        self.calls = sum(map(len, self._shapes)) / SESSIONS  # of a session
        self.session_s = sum(seen.session_s) / SESSIONS
        self.ttft_s, self.tpot_s = seen.worst_ttft(), seen.worst_tpot()
        workers = simulation.deployment.workers
        self._computed = {  # tokens of a session that the model's prefill pool computes, for all its models
            model: workers[route.prefill.workers[0].name].computed_tokens / SESSIONS
            for model, route in simulation.deployment.routes.items()
        }

    def check(self, goal: Goal) -> None:
        """
        Raises:
            GoalMissed: this system misses a goal even so.
        """
        reached = Reached(self.ttft_s, self.tpot_s, self._profile.max_num_batched_tokens, workers=None)
        if goal.missed(reached):
            raise GoalMissed(Missed(self._layout.system, goal, (reached,)))

    def fewest(self, goal: Goal, rate: float) -> Layout:
        """As many workers in each pool as are busy all the time if nothing else is lost."""
        layout, models = self._layout, self._demand.models
        prefill = {model: rate * self._profile.cost.token_s * tokens for model, tokens in self._computed.items()}
        decode = [rate * self._decode_s(pool, goal) for pool in layout.decode_pool_models()]
        if layout.system == "colocated":
            both = [prefill[model] + seconds for model, seconds in zip(models, decode, strict=False)]
            return replace(layout, decode_workers=_whole(both))
        pools = [prefill[model] for model in models[: layout.prefill_pools]]
        return replace(layout, prefill_workers=_whole(pools), decode_workers=_whole(decode))

    def _decode_s(self, models: Sequence[str], goal: Goal) -> float:
        """Device time of a session's output by these models, in the largest batches that goal and memory allow."""
        calls = [call for shape in self._shapes for call in shape if call.model in models]
        if not calls:
            return 0.0
        profile = self._profile
        context = sum(call.prompt + call.output / 2 for call in calls) / len(calls)
        room = int((profile.decode_kv_tokens or profile.kv_tokens) / context)
        sizes = range(min(profile.max_num_seqs, room), 1, -1)
        step_s = {size: profile.cost_of_decode.steps(1, size, int(size * context)) for size in [*sizes, 1]}
        batch = next((size for size in sizes if step_s[size] <= goal.tpot_s), 1)
        return sum(call.output for call in calls) / SESSIONS * step_s[batch] / batch


def _whole(busy: Sequence[float]) -> tuple[int, ...]:
    return tuple(max(1, ceil(workers)) for workers in busy)
