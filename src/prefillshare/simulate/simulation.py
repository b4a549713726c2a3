"""A deployment under a workload: sessions arrive, each call follows the answer to the one before."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prefillshare.errors import UserError
from prefillshare.router_config import PlacementConfig
from prefillshare.simulate.calls import Prompts, Run, Shape
from prefillshare.simulate.clock import Clock
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.deployment import Deployment
from prefillshare.simulate.layout import Layout, Role
from prefillshare.simulate.records import CallRecord, Recorder


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When sessions begin. Either is given.

    Raises:
        UserError: both, neither, or one that nothing arrives by.
    """

    rate: float | None = None  # sessions a second, at random (Poisson), whatever becomes of the others
    concurrent: int | None = None  # sessions at a time: one that ends is followed by the next

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrent is None):
            raise UserError("arrivals: give either `rate` or `concurrent`")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UserError(f"rate: more than 0 sessions a second, found {self.rate}")
        if self.concurrent is not None and self.concurrent < 1:
            raise UserError(f"concurrent: at least 1 session, found {self.concurrent}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the simulation itself, and of the workers; the calls went to the recorder."""

    ended_s: float  # simulated
    events: int
    busy: dict[Role, float]  # share of the time in which devices of the role had something to do, on average
    peak_kv_tokens: int  # of the worker that had most in use


class Simulation:
    """One run. The same arguments give the same run, to the last digit."""

    def __init__(
        self,
        layout: Layout,
        profile: WorkerProfile,
        sessions: Iterable[Shape],
        arrivals: Arrivals,
        recorder: Recorder,
        *,
        preamble_tokens: int = 0,
        placement: PlacementConfig | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            sessions: in the order in which they begin; may be an iterator, and is then read as they do.
            preamble_tokens: that the prompts of all sessions begin with.
        """
        self._clock = Clock()
        self.deployment = Deployment(layout, profile, self._clock, Prompts(preamble_tokens), placement)
        self._profile, self._arrivals, self._recorder = profile, arrivals, recorder
        self._sessions: Iterator[tuple[int, Shape]] = iter(enumerate(sessions))
        self._draw = random.Random(seed)

    def run(self) -> Outcome:
        """
        Raises:
            UserError: a call that no worker has room for.
        """
        if self._arrivals.concurrent is None:
            self._clock.at(0.0, self._arrive)
        else:
            for _ in range(self._arrivals.concurrent):
                self._begin(0.0)
        ended = self._clock.run()
        busy: dict[Role, list[float]] = {}
        for (role, _), device in self.deployment.devices.items():
            busy.setdefault(role, []).append(device.busy_s / ended if ended else 0.0)
        peak = max(worker.cache.peak_in_use for worker in self.deployment.workers.values())
        return Outcome(
            ended,
            self._clock.happened,
            {role: sum(shares) / len(shares) for role, shares in busy.items()},
            peak * self._profile.block_size,
        )

    def _arrive(self, now: float, _: object) -> None:
        assert self._arrivals.rate
        if self._begin(now):
            self._clock.at(now + self._draw.expovariate(self._arrivals.rate), self._arrive)

    def _begin(self, now: float) -> bool:
        """Returns whether there was a session left."""
        for number, shape in self._sessions:
            self.deployment.check(shape)
            self._next_call(now, Run(number, shape, now))
            return True
        return False

    def _next_call(self, now: float, run: Run) -> None:
        if think_s := run.call.think_s:
            self._clock.at(now + think_s, self._call, run)
        else:
            self._call(now, run)

    def _call(self, now: float, run: Run) -> None:
        self.deployment.call(now, run, self._answered)

    def _answered(self, now: float, run: Run, record: CallRecord) -> None:
        self._recorder.call(record)
        run.turn += 1
        if run.turn < len(run.shape):
            self._next_call(now, run)
            return
        self._recorder.session(run.begun, now)
        if self._arrivals.concurrent is not None:
            self._begin(now)
