"""Fitting the cost model to measured runs, and how the machine went to runs under load.

First calls one at a time, in which nobody waits: what a call takes is then linear in the parameters. Then decode steps
of several sizes. A machine that is shared with others is not always as fast as when its costs were measured, and a core
slows down while another is busy, which calls one at a time do not show: `fit_pace` finds both from runs under load, for
which the simulation itself is compared with what was measured. What the fit is worth is said by runs that it has not
seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from prefillshare.errors import UserError
from prefillshare.router_config import FlowConfig
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import Cost, Link, Slowdown, WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord, Records, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.workloads.arrivals import Arrivals

FITTED = ("latency_mean_s", "ttft_mean_s", "tpot_mean_s", "calls_per_s")
ROUNDS = 8
_START = 0.1  # by how much a step is first taken to be longer beside other work


@dataclass(frozen=True, slots=True)
class Pace:
    """How a machine went while runs were made, to how it went while its costs were measured."""

    factor: float = 1.0  # everything takes so many times as long
    beside: float = 1.0  # and a step so many times more while another device of the host is busy

    def of(self, profile: WorkerProfile) -> WorkerProfile:
        """`profile` at this pace. `beside` is not used where it was measured what work does to other work."""
        return replace(
            profile,
            cost=_times(profile.cost, self.factor),
            decode_cost=profile.decode_cost and _times(profile.decode_cost, self.factor),
            link=Link(self.factor * profile.link.latency_s, profile.link.bytes_per_s / self.factor),
            leg_s=self.factor * profile.leg_s,
            slowdown=profile.slowdown or (Slowdown(*4 * (self.beside,)) if self.beside > 1 else None),
        )


AS_MEASURED = Pace()


@dataclass(frozen=True, slots=True)
class Measured:
    """A run on real workers, and all that it takes to simulate it."""

    layout: Layout
    profile: WorkerProfile  # by the costs that were measured
    shapes: Sequence[Shape]
    arrivals: Arrivals
    records: Records
    preamble_tokens: int = 0
    flow: FlowConfig | None = None
    limit_s: float = float("inf")  # when it was cut off

    def simulated(self, pace: Pace = AS_MEASURED) -> Records:
        """All of it, also what ends after the limit."""
        records = Records()
        arguments = (self.layout, pace.of(self.profile), self.shapes, self.arrivals, records)
        Simulation(*arguments, preamble_tokens=self.preamble_tokens, flow=self.flow).run()
        return records


def fit_from_outside(records: Sequence[CallRecord], profile: WorkerProfile) -> WorkerProfile:
    """The same where only a client's times are known, as in a benchmark's records: `ttft_s` and `tpot_s`.

    What does not grow with the prompt cannot be told apart then and is taken as what the legs take beside their steps;
    the handoff is part of it.

    Raises:
        UserError: too few records to tell the costs apart.
    """
    if len(records) < 20:
        raise UserError(f"calibration: at least 20 calls of a run with one session at a time, found {len(records)}")
    step_s, kv_token_s = _between_tokens(records)
    computed, pairs = _computed(records)
    rest = [record.ttft_s - step_s - kv_token_s * record.prompt_tokens for record in records]
    fixed_s, token_s, pair_s = _least_squares([[1.0] * len(records), computed, pairs], rest)
    cost = Cost(0.9 * step_s, token_s, 0.0, pair_s, 0.1 * step_s, kv_token_s)
    return replace(profile, cost=cost, link=Link(0.0, float("inf")), leg_s=fixed_s / 2)


@dataclass(frozen=True, slots=True)
class StepTime:
    """What a decode step took, with so many sequences that read so many tokens of KV in all."""

    sequences: int
    kv_tokens: float
    seconds: float


def fit_batches(cost: Cost, points: Sequence[StepTime]) -> Cost:
    """`cost` with what a step, a sequence in it and a token of KV take, from decode steps of several sizes.

    Small batches are bound by reading the weights (`step_s`), large ones by arithmetic, which `cost.token_s` is known
    for already. Where the one ends and the other begins is tried out: least squares on relative errors for each.

    Raises:
        UserError: too few sizes to tell the costs apart.
    """
    sizes = sorted({point.sequences for point in points})
    if len(sizes) < 3:
        raise UserError(f"calibration: decode steps of at least 3 sizes, found {sizes}")
    fits = [_steps_bound_by_weights(cost, points, most) for most in sizes]
    return min(fits, key=lambda found: sum(miss**2 for miss in misses(found, points)))


def _steps_bound_by_weights(cost: Cost, points: Sequence[StepTime], most: int) -> Cost:
    """If steps of up to `most` sequences are, and those of more by arithmetic."""
    columns: list[list[float]] = [[], [], []]
    values = []
    for point in points:
        bound = point.sequences <= most
        for column, value in zip(columns, (float(bound), point.sequences, point.kv_tokens), strict=True):
            column.append(value / point.seconds)
        rest = 0.0 if bound else cost.launch_s + cost.token_s * point.sequences
        values.append(1 - rest / point.seconds)
    step_s, sequence_s, kv_token_s = _least_squares(columns, values)
    return replace(cost, step_s=step_s, sequence_s=sequence_s, kv_token_s=kv_token_s)


def misses(cost: Cost, points: Sequence[StepTime]) -> list[float]:
    """By what share of itself each step is estimated wrongly."""
    return [cost.step(0, 0.0, point.sequences, point.kv_tokens) / point.seconds - 1 for point in points]


def fit_pace(runs: Sequence[Measured]) -> Pace:
    """The pace at which the simulation is nearest to these runs.

    Damped least squares (Levenberg and Marquardt) on the logarithms of means, so that all errors are relative. Means,
    since percentiles of a simulation jump. `beside` stays 1 if all profiles know what work does to other work.

    Raises:
        UserError: a run without a call that was answered.
    """
    wanted = [
        {name: found[name] for name in FITTED if found[name]} for found in (summarise(run.records) for run in runs)
    ]
    if not all(wanted):
        raise UserError("calibration: a run to fit to has no call that was answered")
    beside_is_known = all(run.profile.slowdown for run in runs)

    def pace(at: NDArray[np.float64]) -> Pace:
        return Pace(exp(at[0]), 1.0 if beside_is_known else 1.0 + exp(at[1]))

    def missed(at: NDArray[np.float64]) -> NDArray[np.float64]:
        found = [summarise(run.simulated(pace(at)).until(run.limit_s)) for run in runs]
        return np.array(
            [log(one[name] / known) for one, other in zip(found, wanted, strict=True) for name, known in other.items()]
        )

    start = [0.0] if beside_is_known else [0.0, log(_START)]
    return pace(_nearest(missed, np.array(start)))


def _nearest(
    missed: Callable[[NDArray[np.float64]], NDArray[np.float64]], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From `at`, to where the squares of what is missed are least. Slopes are taken over a wide step, since a
    simulation of single events is not smooth."""
    width, damping, misses_now = 0.2, 0.01, missed(at)
    for _ in range(ROUNDS):
        moves = width * np.eye(len(at))
        slopes = np.array([(missed(at + move) - misses_now) / width for move in moves]).T
        step = np.linalg.solve(slopes.T @ slopes + damping * np.eye(len(at)), -slopes.T @ misses_now)
        moved = at + np.clip(step, -1.0, 1.0)
        found = missed(moved)
        if found @ found < misses_now @ misses_now:
            at, misses_now, damping = moved, found, damping / 3
        else:
            damping *= 5
    return at


def _times(cost: Cost, factor: float) -> Cost:
    return replace(cost, **{field.name: factor * getattr(cost, field.name) for field in fields(Cost)})


def _computed(records: Sequence[CallRecord]) -> tuple[list[int], list[float]]:
    """Of each call: prompt tokens that were computed, and pairs of one of them with one that it attends to."""
    computed = [record.prompt_tokens - record.cached_tokens for record in records]
    pairs = [n * (record.cached_tokens + (n + 1) / 2) for n, record in zip(computed, records, strict=True)]
    return computed, pairs


def _between_tokens(records: Sequence[CallRecord]) -> tuple[float, float]:
    """What a step takes, and a token of KV that it reads."""
    growing = [record for record in records if record.output_tokens > 1]
    read = [record.prompt_tokens + record.output_tokens / 2 for record in growing]
    step_s, kv_token_s = _least_squares([[1.0] * len(growing), read], [record.tpot_s for record in growing])
    return step_s, kv_token_s


def _least_squares(columns: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients of at least 0: columns whose own would be less are left out, the worst first."""
    kept = list(range(len(columns)))
    while True:
        matrix = np.array([columns[index] for index in kept], dtype=float).T
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
        found = np.linalg.lstsq(matrix / scale, np.array(values), rcond=None)[0] / scale
        worst = int(np.argmin(found * scale))
        if found[worst] >= 0 or len(kept) == 1:
            break
        del kept[worst]
    coefficients = [0.0] * len(columns)
    for index, value in zip(kept, found, strict=True):
        coefficients[index] = max(0.0, float(value))
    return coefficients
