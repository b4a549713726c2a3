"""A deployment under a workload: sessions arrive, each call follows the answer to the one before."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from prefillshare.router_config import FlowConfig, PlacementConfig
from prefillshare.simulate.calls import Prompts, Run, Shape
from prefillshare.simulate.clock import Clock
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.deployment import Deployment
from prefillshare.simulate.layout import Layout, Place
from prefillshare.simulate.records import CallRecord, Recorder
from prefillshare.workloads.arrivals import Arrivals, Closed, Open, Poisson


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the simulation itself, and of the workers; the calls went to the recorder."""

    ended_s: float  # simulated
    events: int
    # Share of the time in which devices had something to do, on average, by whose they are: prefill workers', decode
    # workers', both kinds'.
    busy: dict[str, float]
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
        flow: FlowConfig | None = None,
        busy_within: tuple[float, float] | None = None,
    ) -> None:
        """
        Args:
            sessions: in the order in which they begin; may be an iterator, and is then read as they do.
            preamble_tokens: that the prompts of all sessions begin with.
            flow: how calls wait for room on workers; without it they begin at once, and wait inside these.
            busy_within: simulated seconds between which devices are watched; without it from the first event to the
                last, which of an open loop takes in the time that it fills and the time that it empties.
        """
        self._clock = Clock()
        self.deployment = Deployment(
            layout, profile, self._clock, Prompts(preamble_tokens, apart=layout.kv_apart), placement, flow
        )
        self._profile, self._arrivals, self._recorder = profile, arrivals, recorder
        self._sessions: Iterator[tuple[int, Shape]] = iter(enumerate(sessions))
        self._busy_within = busy_within

    def run(self) -> Outcome:
        """
        Raises:
            UserError: a call that no worker has room for.
        """
        if isinstance(self._arrivals, Closed):
            for _ in range(self._arrivals.concurrent):
                self._begin(0.0)
        else:
            self._clock.at(0.0, self._arrive, intervals(self._arrivals))
        readings: list[dict[Place, float]] = []
        for moment in self._busy_within or ():
            self._clock.at(moment, lambda now, _: readings.append(self._busy_s(now)))
        ended = self._clock.run()
        since, until = self._busy_within or (0.0, ended)
        before, after = readings or (dict.fromkeys(self.deployment.devices, 0.0), self._busy_s(ended))
        busy: dict[str, list[float]] = {}
        for key, seconds in before.items():
            busy.setdefault(key[0], []).append((after[key] - seconds) / (until - since) if until else 0.0)
        peak = max(worker.cache.peak_in_use for worker in self.deployment.workers.values())
        return Outcome(
            ended,
            self._clock.happened,
            {role: sum(shares) / len(shares) for role, shares in busy.items()},
            peak * self._profile.block_size,
        )

    def _busy_s(self, now: float) -> dict[Place, float]:
        """Of each device, until now."""
        return {key: device.busy(now) for key, device in self.deployment.devices.items()}

    def _arrive(self, now: float, waits: Iterator[float]) -> None:
        if self._begin(now) and (wait := next(waits, None)) is not None:
            self._clock.at(now + wait, self._arrive, waits)

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
        if isinstance(self._arrivals, Closed):
            self._begin(now)


def intervals(arrivals: Open) -> Iterator[float]:
    """Seconds between sessions: those of its `times`, which of a Poisson process have no end."""
    if not isinstance(arrivals, Poisson):
        yield from (after - before for before, after in pairwise(arrivals.times(len(arrivals.starts))))
        return
    draw = random.Random(arrivals.seed)
    while True:
        yield draw.expovariate(arrivals.rate)
