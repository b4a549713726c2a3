"""Fitting the cost model to measured runs, and saying how well it predicts others.

First a run of one session at a time, in which nobody waits: what a leg takes is then linear in the parameters. Then
runs under load, for which the simulation itself is compared with what was measured; that moves the parameters that a
run of its own does not show, such as what each further sequence in a batch costs. What the fit is worth is said by runs
that it has not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from prefillshare.errors import UserError
from prefillshare.simulate.calls import Shape
from prefillshare.simulate.cost import Cost, Link, WorkerProfile
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord, Records, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.workloads.arrivals import Arrivals

COMPARED = ("latency_p50_s", "latency_p95_s", "ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "calls_per_s")
FITTED = ("latency_mean_s", "ttft_mean_s", "tpot_mean_s", "calls_per_s")
REFINED = ("step_s", "token_s", "sequence_s", "kv_token_s")
ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """A run on real workers, and all that it takes to simulate it."""

    layout: Layout
    shapes: Sequence[Shape]
    arrivals: Arrivals
    records: Sequence[CallRecord]
    preamble_tokens: int = 0

    def summary(self) -> dict[str, float]:
        records = Records()
        records.calls.extend(self.records)
        return summarise(records)

    def simulated(self, profile: WorkerProfile) -> dict[str, float]:
        records = Records()
        arguments = (self.layout, profile, self.shapes, self.arrivals, records)
        Simulation(*arguments, preamble_tokens=self.preamble_tokens).run()
        return summarise(records)


def fit_alone(records: Sequence[CallRecord], profile: WorkerProfile) -> WorkerProfile:
    """`profile` with the costs of these records, of a run of one session at a time on disaggregated workers.

    Least squares with no cost below 0, over leg 1 (launch, tokens, pairs), over the time between tokens (a step, KV
    read) and over what lies between leg 1 and the first token (the handoff). A sequence's own cost is in every step and
    does not show; a tenth of the step is taken for it, where `refine` goes on from.

    Raises:
        UserError: too few records to tell the costs apart.
    """
    if len(records) < 20:
        raise UserError(f"calibration: at least 20 calls of a run with one session at a time, found {len(records)}")
    leg_s = sum(record.queue_s for record in records) / len(records)
    computed, pairs = _computed(records)
    prefill = [record.prefill_s for record in records]
    launch_s, token_s, pair_s = _least_squares([[1.0] * len(records), computed, pairs], prefill)
    step_s, kv_token_s = _between_tokens(records)
    first = [step_s + kv_token_s * record.prompt_tokens for record in records]
    handoff = [
        record.ttft_s - record.queue_s - record.prefill_s - leg_s - step
        for record, step in zip(records, first, strict=True)
    ]
    latency_s, pulled_s = _least_squares([[1.0] * len(records), [record.pulled_tokens for record in records]], handoff)
    cost = Cost(0.9 * step_s, token_s, launch_s, pair_s, 0.1 * step_s, kv_token_s)
    bytes_per_s = profile.kv_bytes_per_token / pulled_s if pulled_s else float("inf")
    return replace(profile, cost=cost, link=Link(latency_s, bytes_per_s), leg_s=leg_s)


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


def refine(profile: WorkerProfile, runs: Sequence[Measured], names: Sequence[str] = REFINED) -> WorkerProfile:
    """`profile` with the costs `names` changed so that the simulation is nearest to these runs under load.

    Damped least squares (Levenberg and Marquardt) on the logarithms of costs and of means, so that all errors are
    relative and no cost falls below 0. Means, since percentiles of a simulation jump.
    """
    wanted = [run.summary() for run in runs]
    at = np.array([log(max(getattr(profile.cost, name), 1e-12)) for name in names])
    missed, damping = _missed(_with(profile, names, at), runs, wanted), 0.01
    for _ in range(ROUNDS):
        slopes = np.array([_slope(profile, names, at, index, missed, runs, wanted) for index in range(len(names))]).T
        squares = slopes.T @ slopes
        step = np.linalg.solve(squares + damping * np.eye(len(names)), -slopes.T @ missed)
        moved = at + np.clip(step, -1.0, 1.0)
        found = _missed(_with(profile, names, moved), runs, wanted)
        if found @ found < missed @ missed:
            at, missed, damping = moved, found, damping / 3
        else:
            damping *= 5
    return _with(profile, names, at)


def errors(profile: WorkerProfile, run: Measured) -> Mapping[str, tuple[float, float, float]]:
    """Of each figure: measured, simulated, and the relative error of the latter."""
    measured, simulated = run.summary(), run.simulated(profile)
    return {name: (measured[name], simulated[name], simulated[name] / measured[name] - 1) for name in COMPARED}


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


def _with(profile: WorkerProfile, names: Sequence[str], logs: NDArray[np.float64]) -> WorkerProfile:
    return replace(profile, cost=replace(profile.cost, **{name: exp(at) for name, at in zip(names, logs, strict=True)}))


def _missed(
    profile: WorkerProfile, runs: Sequence[Measured], wanted: Sequence[Mapping[str, float]]
) -> NDArray[np.float64]:
    """How far each figure of each run is off, as a logarithm."""
    found = [run.simulated(profile) for run in runs]
    return np.array([log(one[name] / other[name]) for one, other in zip(found, wanted, strict=True) for name in FITTED])


def _slope(
    profile: WorkerProfile,
    names: Sequence[str],
    at: NDArray[np.float64],
    index: int,
    missed: NDArray[np.float64],
    runs: Sequence[Measured],
    wanted: Sequence[Mapping[str, float]],
) -> NDArray[np.float64]:
    """By how much everything moves with one cost. The step is wide: a simulation of single events is not smooth."""
    width = 0.2
    moved = at.copy()
    moved[index] += width
    return (_missed(_with(profile, names, moved), runs, wanted) - missed) / width


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
