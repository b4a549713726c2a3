"""A call on its way: the jobs that it is to its workers, and what follows from what happens to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from prefillshare.simulate.calls import Run
from prefillshare.simulate.records import CallRecord
from prefillshare.simulate.worker import Job, Worker

if TYPE_CHECKING:
    from prefillshare.simulate.deployment import Deployment
    from prefillshare.simulate.gate import Room
    from prefillshare.simulate.turns import Turn

Answered = Callable[[float, Run, CallRecord], None]


class _Leg(Job):
    """A call in one worker. `lease` counts it in the pool as long as it is there, as the router does."""

    __slots__ = ("admitted_s", "answered", "arrived_s", "deployment", "ended_s", "first_s", "lease", "run", "worker")

    def __init__(
        self,
        deployment: Deployment,
        arrived_s: float,
        run: Run,
        worker: Worker,
        lease: AbstractContextManager[None],
        answered: Answered,
        output: int,
    ) -> None:
        self.deployment, self.run, self.worker, self.lease, self.answered = deployment, run, worker, lease, answered
        self.arrived_s = arrived_s
        self.admitted_s = self.first_s = self.ended_s = 0.0
        call, block_size = run.call, deployment.profile.block_size
        stretches = deployment.prompts.stretches(run, block_size)
        # A prefill worker has no room for output: its one token needs none.
        private = -(-(call.prompt + output) // block_size) - call.prompt // block_size
        super().__init__(call.prompt, max(1, output), stretches, private)

    def submit(self, now: float, _: object = None) -> None:
        self.worker.submit(now, self)

    def admitted(self, now: float) -> None:
        self.admitted_s = now

    def first_token(self, now: float) -> None:
        self.first_s = now

    def end(self, now: float) -> None:
        """It has left its worker, and the router knows."""
        self.lease.__exit__(None, None, None)
        self.ended_s = now

    def record(self, prefilled: _Leg) -> CallRecord:
        call, arrived_s = self.run.call, prefilled.arrived_s
        between = (self.ended_s - self.first_s) / (call.output - 1) if call.output > 1 else 0.0
        return CallRecord(
            session=self.run.name,
            turn=self.run.turn,
            model=call.model,
            arrived_s=arrived_s,
            queue_s=prefilled.admitted_s - arrived_s,
            prefill_s=prefilled.first_s - prefilled.admitted_s,
            ttft_s=self.first_s - arrived_s,
            tpot_s=between,
            latency_s=self.ended_s - arrived_s,
            prompt_tokens=call.prompt,
            cached_tokens=prefilled.cached,
            output_tokens=call.output,
            pulled_tokens=call.prompt - self.cached if self is not prefilled else 0,
            prefill_worker=prefilled.worker.name,
            decode_worker=self.worker.name,
        )


class PrefillLeg(_Leg):
    """Leg 1: the prompt's KV, and one token that nobody reads. The blocks are held until they have been pulled."""

    __slots__ = ("room",)

    def __init__(
        self,
        deployment: Deployment,
        now: float,
        run: Run,
        worker: Worker,
        lease: AbstractContextManager[None],
        answered: Answered,
        room: Room | None = None,
    ) -> None:
        """`room` is what the call holds, where calls wait for it."""
        super().__init__(deployment, now, run, worker, lease, answered, output=0)
        self.room = room

    def finished(self, now: float) -> None:
        self.end(now)
        self.deployment.decode(now, self)


class DecodeLeg(_Leg):
    """Leg 2: pulls the KV that its worker does not hold, then generates."""

    __slots__ = ("prefilled", "turn")
    fetched = True

    def __init__(self, prefilled: PrefillLeg, now: float, worker: Worker, lease: AbstractContextManager[None]) -> None:
        run = prefilled.run
        super().__init__(prefilled.deployment, now, run, worker, lease, prefilled.answered, run.call.output)
        self.prefilled = prefilled
        self.turn: Turn | None = None

    def admitted(self, now: float) -> None:
        super().admitted(now)
        source, target = self.prefilled.worker.name, self.worker.name
        arrives = self.deployment.pulled(now, source, target, self.prompt - self.cached)
        self.deployment.clock.at(arrives, self._pulled)

    def _pulled(self, now: float, _: object) -> None:
        self.prefilled.worker.release(now, self.prefilled)
        self.worker.arrived(now, self)
        if room := self.prefilled.room:
            room.pulled(now)

    def finished(self, now: float) -> None:
        self.end(now)
        self.worker.release(now, self)
        if self.turn:
            self.turn.end(now)
        if room := self.prefilled.room:
            room.decoded(now)
        self.answered(now, self.run, self.record(self.prefilled))


class ColocatedLeg(_Leg):
    """Both at once, in a worker that computes the prompt between its decode steps."""

    __slots__ = ()

    def __init__(
        self,
        deployment: Deployment,
        now: float,
        run: Run,
        worker: Worker,
        lease: AbstractContextManager[None],
        answered: Answered,
    ) -> None:
        super().__init__(deployment, now, run, worker, lease, answered, run.call.output)

    def finished(self, now: float) -> None:
        self.end(now)
        self.worker.release(now, self)
        self.answered(now, self.run, self.record(self))
